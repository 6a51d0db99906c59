// Words of the page in English and Chinese; the browser's language chooses.
const WORDS = {
  en: {
    start: "Start", end: "End", microphone: "Microphone", interrupt: "Stop talking", pause: "Pause", resume: "Go on",
    say: "Type something to say", sayButton: "Say it", noVoice: "No voice for typed words here (install espeak-ng)",
    prompt: "What the video shows", promptButton: "Change", portrait: "Portrait…", sound: "Sound file…",
    download: "Download recording", delay: "Delay", fps: "Frames/s", queued: "Waiting", late: "Late",
    webrtc: "Low delay (WebRTC)", whoSpeaks: "Who speaks", speaker: "Speaker {n}", interruptAll: "Stop all",
    halves: "Two people in it: left and right",
    loading: "Loading the model…", waiting: "Somebody else is talking; you are number {n} in line.",
    lost: "The connection was lost; trying again…", ended: "The talk has ended.",
    insecure: "Browsers give the microphone only to localhost and https pages. Open this page on the machine itself, or behind https.",
    refused: "The microphone was not allowed.", unplayable: "This browser cannot play the stream (MediaSource with H.264).",
    states: { idle: "quiet", speaking: "talking", starved: "too slow for real time", interrupted: "interrupted",
      closed: "ended", paused: "paused" },
    outputs: { recording: "is being recorded", connecting: "connecting…", sending: "is being sent", closed: "ended" },
  },
  zh: {
    start: "开始", end: "结束", microphone: "麦克风", interrupt: "停止说话", pause: "暂停", resume: "继续",
    say: "输入要说的话", sayButton: "说出来", noVoice: "此处没有朗读文字的语音（请安装 espeak-ng）",
    prompt: "画面描述", promptButton: "更改", portrait: "肖像…", sound: "声音文件…",
    download: "下载录像", delay: "延迟", fps: "帧/秒", queued: "等待", late: "迟到", webrtc: "低延迟（WebRTC）",
    whoSpeaks: "谁在说话", speaker: "说话人 {n}", interruptAll: "全部停止", halves: "肖像中有两个人：左和右",
    loading: "正在加载模型…", waiting: "有人正在使用；您排在第 {n} 位。",
    lost: "连接中断，正在重试…", ended: "对话已结束。",
    insecure: "浏览器只允许 localhost 和 https 页面使用麦克风。请在本机打开此页面，或通过 https 访问。",
    refused: "未获准使用麦克风。", unplayable: "此浏览器无法播放该视频流（MediaSource H.264）。",
    states: { idle: "安静", speaking: "正在说话", starved: "速度不够实时", interrupted: "已打断", closed: "已结束", paused: "已暂停" },
    outputs: { recording: "正在录制", connecting: "正在连接…", sending: "正在发送", closed: "已结束" },
  },
};

export const language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
export const words = WORDS[language];
