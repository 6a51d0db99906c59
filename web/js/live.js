// The panel of the node "Live": the talk plays in it while it runs, with its buttons. A talk belongs to the page, not to
// the node, because the frontend makes new nodes when another workflow is shown.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { LIVE, RunPanel, grow, hideOldVideo, locale, make, mount } from "./liveavatar.js";

const CLIENT = "/liveavatar/live/page/client.js"; // what this panel shares with the page of `liveavatar live`
const KEPT = "liveavatar.talk"; // the invitation, for this tab after a reload
const MICROPHONE = "microphone";
const HIGH = 352; // with the picture; what was recorded is shown by ComfyUI itself

const WORDS = {
  en: {
    idle: (minutes) => `Press Run and speak: it listens to this browser's microphone, for at most ${minutes} minutes.`,
    idleSounds: (minutes) => `Press Run: it says what is connected to audio, for at most ${minutes} minutes.`,
    insecure: (port, host, address) =>
      `Browsers give the microphone only to pages of localhost and https, and this one is neither. Either run ` +
      `ssh -L ${port}:localhost:${port} ${host} here and open ${address}, or start ComfyUI with --tls-keyfile and ` +
      `--tls-certfile.`,
    loading: "Allow the microphone when the browser asks.\nIt begins when the model is loaded.",
    loadingSounds: "It begins when the model is loaded.",
    refused: "The microphone was not allowed, or there is none. Allow it in the browser's address bar, then press Microphone.",
    mute: "Mute microphone",
    unmute: "Microphone",
    interrupt: "Stop talking",
    interruptTip: "Drops what has not been said yet",
    whoSpeaks: "Who speaks into the microphone",
    speaker: (n) => `Speaker ${n}`,
    lowDelay: "Low delay",
    lowDelayTip: "Watch over WebRTC, which keeps nothing in hand; this browser has to reach ComfyUI's machine directly",
    stop: "Stop",
    stopTip: "Ends the talk; its recording goes to the nodes behind this one",
    say: "Something to say",
    sayButton: "Say",
    noVoice: "Typed words need espeak-ng on the server",
    prompt: "What the video shows from now on",
    promptButton: "Change",
    changed: "The next picture shows it.",
    first: "It says the connected sound first.",
    off: "The microphone is off.",
    lost: "The connection was lost; trying again…",
    blocked: "Click the picture to hear it.",
    unplayable: "This page cannot play the stream. It needs a browser with MediaSource and H.264, and ComfyUI without --disable-api-nodes, whose rules forbid it.",
    delay: (seconds) => `${seconds} s delay`,
    fps: (n) => `${n} fps`,
    time: (now, all) => `${now} of ${all}`,
    minutes: (m, s) => (m ? (s ? `${m} min ${s} s` : `${m} min`) : `${s} s`),
    recorded: (time) => `Recorded ${time}.`,
    states: { idle: "quiet", speaking: "talking", starved: "too slow for real time", interrupted: "interrupted", closed: "ended" },
    outputs: { connecting: "connecting…", sending: "is being sent", closed: "ended" },
  },
  zh: {
    idle: (minutes) => `点击“运行”后说话：使用本浏览器的麦克风，最长 ${minutes} 分钟。`,
    idleSounds: (minutes) => `点击“运行”：朗读 audio 输入的声音，最长 ${minutes} 分钟。`,
    insecure: (port, host, address) =>
      `浏览器只允许 localhost 和 https 页面使用麦克风，本页面两者都不是。请在本机运行 ssh -L ${port}:localhost:${port} ` +
      `${host} 并打开 ${address}，或用 --tls-keyfile 和 --tls-certfile 启动 ComfyUI。`,
    loading: "浏览器询问时请允许使用麦克风。\n模型加载完后开始。",
    loadingSounds: "模型加载完后开始。",
    refused: "未获准使用麦克风，或没有麦克风。请在浏览器地址栏中允许，然后点击“麦克风”。",
    mute: "关闭麦克风",
    unmute: "麦克风",
    interrupt: "停止说话",
    interruptTip: "丢弃尚未说出的内容",
    whoSpeaks: "谁在对麦克风说话",
    speaker: (n) => `说话人 ${n}`,
    lowDelay: "低延迟",
    lowDelayTip: "通过 WebRTC 观看，不留缓冲；本浏览器须能直接访问 ComfyUI 所在的机器",
    stop: "结束",
    stopTip: "结束对话；录像交给后面的节点",
    say: "要说的话",
    sayButton: "说",
    noVoice: "输入文字需要服务器安装 espeak-ng",
    prompt: "从现在起的画面描述",
    promptButton: "更改",
    changed: "将从下一画面起生效。",
    first: "先播放所连接的声音。",
    off: "麦克风已关闭。",
    lost: "连接中断，正在重试…",
    blocked: "点击画面以播放声音。",
    unplayable: "本页面无法播放该视频流：需要支持 MediaSource 与 H.264 的浏览器，且 ComfyUI 启动时不带 --disable-api-nodes。",
    delay: (seconds) => `延迟 ${seconds} 秒`,
    fps: (n) => `${n} 帧/秒`,
    time: (now, all) => `${now} / ${all}`,
    minutes: (m, s) => (m ? (s ? `${m} 分 ${s} 秒` : `${m} 分钟`) : `${s} 秒`),
    recorded: (time) => `已录制 ${time}。`,
    states: { idle: "安静", speaking: "正在说话", starved: "速度不够实时", interrupted: "已打断", closed: "已结束" },
    outputs: { connecting: "正在连接…", sending: "正在发送", closed: "已结束" },
  },
};

const words = () => (locale().startsWith("zh") ? WORDS.zh : WORDS.en);
const clock = (say, seconds) => say.minutes(Math.floor(Math.round(seconds) / 60), Math.round(seconds) % 60);

// ----------------------------------------------------------------------------------------------------------- talk

let talk = null; // the one of this page

// A talk that this page was invited to: it goes on while the node that shows it comes and goes.
class Talk {
  constructor(invitation, returning) {
    Object.assign(this, { invitation, returning, joined: false, state: null, note: "" });
    this.video = Object.assign(make("video"), { playsInline: true });
    sessionStorage.setItem(KEPT, JSON.stringify(invitation));
  }

  get usesMicrophone() {
    return this.invitation.source === MICROPHONE;
  }

  async join() {
    const { LiveClient } = await import(api.apiURL(CLIENT));
    if (talk !== this) return; // over, or another one in its place, before the script was here
    const { node, prompt, token } = this.invitation;
    const url = new URL(api.apiURL(`/liveavatar/live/talks/${[prompt, node].map(encodeURIComponent).join("/")}`), location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const on = {
      ready: () => this.ready(),
      started: () => this.show(),
      stats: (message) => this.show({ state: message }),
      error: (message) => this.show({ note: `${message.what} ${message.nearest}` }),
      bye: () => this.close(),
      lost: (again) => (again ? this.show({ note: words().lost }) : this.close()),
      unplayable: () => this.show({ note: words().unplayable }),
    };
    this.client = new LiveClient({ url, token, video: this.video, on, persistent: !this.returning, keeps: false });
    this.client.connect();
  }

  // A page that was reloaded asks for the microphone no more: nobody may be there.
  ready() {
    if (this.joined) return this.show({ note: "" });
    [this.joined, this.client.persistent] = [true, true];
    if (this.usesMicrophone && !this.returning) this.listen();
    else this.show({ note: this.usesMicrophone ? words().off : "" });
  }

  async listen() {
    const fault = await this.client.listen();
    if (talk !== this) return this.close(); // it was over before the user had allowed it
    this.show({ note: fault === "insecure" ? insecure() : fault ? words().refused : "" });
  }

  toggleMicrophone() {
    if (!this.client.microphone) return this.listen();
    this.client.mute();
    return this.show({ note: words().off });
  }

  stop() {
    if (!this.client.open) return;
    this.stopping = true;
    this.client.send("bye");
    this.client.mute();
  }

  show(change = {}) {
    Object.assign(this, change);
    for (const panel of panels()) panel.draw();
  }

  close() {
    this.client?.close();
    if (talk !== this) return;
    talk = null;
    sessionStorage.removeItem(KEPT);
    for (const panel of panels()) panel.draw();
  }
}

function invited(invitation, returning = false) {
  talk?.close();
  talk = new Talk(invitation, returning);
  talk.join().catch((error) => {
    console.warn("Live Avatar:", error);
    talk?.close();
  });
}

function insecure() {
  const { hostname, port, protocol } = location;
  const at = port || (protocol === "https:" ? "443" : "80");
  return words().insecure(at, hostname, `${protocol}//localhost:${at}`);
}

// ---------------------------------------------------------------------------------------------------------- panel

const STYLE = `
.liveavatar .controls { display: flex; flex: none; gap: 4px; margin: 0; }
.liveavatar.run.idle:has(.poster) > :is(.bar, .line) { display: none; }
.liveavatar .live > .poster { font-size: 12px; line-height: 17px; box-sizing: border-box; padding: 12px 24px; display: grid; place-items: center;
  text-align: center; white-space: pre-line; overflow: auto; cursor: default; user-select: text; border-radius: 4px;
  background: color-mix(in srgb, var(--input-text, #ddd) 6%, transparent); }
.liveavatar .controls :is(button, select) { flex: 0 1 auto; padding: 3px 8px; font: inherit; cursor: pointer; border-radius: 4px;
  border: 1px solid color-mix(in srgb, var(--input-text, #ddd) 25%, transparent); color: inherit;
  background: var(--comfy-input-bg, #222); white-space: nowrap; }
.liveavatar .controls button.wide { flex: 1 1 auto; }
.liveavatar .controls button.on { border-color: var(--la-bar); color: var(--la-bar); }
.liveavatar .controls button.stop { border-color: var(--error-text, #ff4444); }
.liveavatar .controls :disabled { opacity: .5; cursor: default; }
.liveavatar .controls input { flex: 1; min-width: 0; padding: 3px 6px; font: inherit; border-radius: 4px; color: inherit;
  border: 1px solid color-mix(in srgb, var(--input-text, #ddd) 25%, transparent);
  background: var(--comfy-input-bg, #222); user-select: text; }
.liveavatar .note { flex: none; white-space: pre-line; overflow-wrap: anywhere; user-select: text; }
.liveavatar .note:empty { display: none; }`;

const drawn = new Set(); // weak references: a node that another workflow has taken the place of is never removed
const panels = () => {
  for (const one of drawn) if (!one.deref()) drawn.delete(one);
  return [...drawn].map((one) => one.deref());
};

const button = (className, act) => Object.assign(make("button", className), { type: "button", onclick: act });

// A line to type into, with its button.
function form(act) {
  const input = Object.assign(make("input"), { maxLength: 2000, autocomplete: "off" });
  const send = Object.assign(make("button"), { type: "submit" });
  const element = make("form", "controls", input, send);
  element.onsubmit = (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (text) act(text, input);
  };
  return { element, input, send };
}

// How what is sent to out_url goes, a line each.
function sent(state) {
  return (state?.outputs ?? []).map((one) => one.what || `${one.to}: ${words().outputs[one.state] ?? one.state}`);
}

// The bar and words of every run; between them the picture, or before there is one what to do.
export class LivePanel extends RunPanel {
  constructor(node) {
    super("", true);
    this.node = node;
    this.speaker = make("select");
    this.speaker.onchange = () => talk?.client.setSpeaker(Number(this.speaker.value));
    this.microphone = button("wide", () => talk?.toggleMicrophone());
    this.interrupt = button("wide", () => talk?.client.interrupt());
    this.lowDelay = button("", () => {
      talk?.client.setLowDelay(!talk.client.lowDelay);
      talk?.show();
    });
    this.stop = button("stop", () => talk?.stop());
    this.say = form((text, input) => {
      const { client } = talk ?? {};
      client?.send("say", { text, voice: words() === WORDS.zh ? "cmn" : "en-us", speaker: client.speaker });
      input.value = "";
    });
    this.say.element.prepend(this.speaker);
    this.prompt = form((text) => {
      talk?.client.send("prompt", { text });
      talk?.show({ note: words().changed });
    });
    this.poster = make("div", "poster faint");
    this.note = make("div", "note faint");
    this.note.setAttribute("role", "status");
    this.buttons = make("div", "controls", this.microphone, this.interrupt, this.lowDelay, this.stop);
    const forms = [this.say.element, this.prompt.element, this.note];
    for (const one of [this.buttons, ...forms]) one.onpointerdown = (event) => event.stopPropagation(); // no handle
    const [bar, line, below] = this.element.childNodes;
    this.element.replaceChildren(bar, line, below, this.buttons, this.live, ...forms);
    this.draw();
  }

  // The talk that this node shows now.
  get talk() {
    return this.running && talk?.invitation.node === this.last.node ? talk : null;
  }

  get height() {
    return this.last === null || this.running ? HIGH : super.height;
  }

  widget(name) {
    return this.node.widgets?.find((one) => one.name === name)?.value;
  }

  show(at, now) {
    super.show(at, now);
    if (!this.running && talk?.invitation.node === at.node) talk.close();
    this.draw();
  }

  watch(autoplay) {
    if (this.talk) this.talk.client?.player?.unblock();
    else super.watch(autoplay);
  }

  draw() {
    const current = this.talk, talking = Boolean(current?.client?.talking);
    for (const one of [this.buttons, this.say.element, this.prompt.element]) one.hidden = !talking;
    if (talking) this.drawTalk(current, current.client);
    else if (this.last === null || this.running) this.drawPoster(current);
    if (this.last?.phase === "done") this.left.textContent = words().recorded(clock(words(), this.last.seconds ?? 0));
    this.note.textContent = talking ? [current.note, ...sent(current.state)].filter(Boolean).join("\n") : "";
    hideOldVideo(this.node, this.running);
    if (this.height > this.had) grow(this.node);
    this.had = this.height;
  }

  had = Infinity; // height when it was drawn last

  put(element) {
    this.live.hidden = false;
    if (this.live.firstChild !== element) this.live.replaceChildren(element);
  }

  drawPoster(current) {
    this.poster.textContent = current?.note || (this.last ? this.loading() : this.advice());
    this.live.title = "";
    this.put(this.poster);
  }

  // What a newcomer wants to know before the first run.
  advice() {
    const say = words(), minutes = this.widget("longest_minutes") ?? 10;
    if (this.widget("source") !== MICROPHONE) return say.idleSounds(minutes);
    return navigator.mediaDevices ? say.idle(minutes) : insecure();
  }

  loading() {
    return this.widget("source") === MICROPHONE ? words().loading : words().loadingSounds;
  }

  drawTalk(current, client) {
    const say = words(), usesMicrophone = current.usesMicrophone;
    this.live.title = client.player?.blocked ? say.blocked : "";
    this.put(current.video);
    this.microphone.hidden = this.say.element.hidden = !usesMicrophone;
    this.drawSpeakers(say, client, usesMicrophone);
    this.microphone.textContent = client.microphone ? say.mute : say.unmute;
    this.microphone.className = `wide ${client.microphone ? "on" : ""}`;
    this.say.input.disabled = this.say.send.disabled = !client.voice;
    this.say.input.placeholder = client.voice ? say.say : say.noVoice;
    this.say.send.textContent = say.sayButton;
    this.prompt.input.placeholder = say.prompt;
    this.prompt.send.textContent = say.promptButton;
    Object.assign(this.interrupt, { textContent: say.interrupt, title: say.interruptTip });
    Object.assign(this.lowDelay, { textContent: say.lowDelay, title: say.lowDelayTip, hidden: !client.webrtc });
    this.lowDelay.className = client.lowDelay ? "on" : "";
    Object.assign(this.stop, { textContent: say.stop, title: say.stopTip, disabled: Boolean(current.stopping) });
    if (current.state) this.drawMeter(say, current.state, client, current);
  }

  // Of several people in the picture, the names of those who speak.
  speaking(say, { speakers }) {
    const names = speakers.map((one, i) => (one.state === "speaking" ? say.speaker(i + 1) : ""));
    return speakers.length > 1 ? names.filter(Boolean) : [];
  }

  // Of several people in the picture, whose voice the microphone is.
  drawSpeakers(say, client, usesMicrophone) {
    this.speaker.hidden = !usesMicrophone || client.speakers < 2;
    this.speaker.title = say.whoSpeaks;
    this.speaker.setAttribute("aria-label", say.whoSpeaks);
    const names = Array.from({ length: client.speakers }, (_, i) => say.speaker(i + 1));
    const shown = Array.from(this.speaker.childNodes, (option) => option.text);
    // drawn every second: an open list is left alone
    if (String(shown) !== String(names)) this.speaker.replaceChildren(...names.map((name, i) => new Option(name, i + 1)));
    if (Number(this.speaker.value) !== client.speaker) this.speaker.value = client.speaker;
  }

  drawMeter(say, state, client, current) {
    const seconds = 0.48 * state.block;
    this.ready.style.width = `${Math.min(100, (100 * seconds) / current.invitation.longest_s)}%`;
    this.left.textContent = [say.states[state.state] ?? state.state, ...this.speaking(say, state)].join(" · ");
    this.right.textContent = say.time(clock(say, seconds), clock(say, current.invitation.longest_s));
    const fps = typeof state.fps === "number" ? say.fps(state.fps.toFixed(1)) : "";
    const meters = [state.lag_ms ? say.delay(client.delay.toFixed(2)) : "", fps];
    const hint = client.player?.blocked ? say.blocked : current.usesMicrophone && !client.listening ? say.first : "";
    this.below.firstChild.textContent = [...meters, hint].filter(Boolean).join(" · ");
  }
}

// --------------------------------------------------------------------------------------------------------- wiring

// The advice follows the widgets it is about.
function watchWidgets(node, panel) {
  for (const widget of node.widgets ?? []) {
    if (!["source", "longest_minutes"].includes(widget.name)) continue;
    const { callback } = widget;
    widget.callback = function (...given) {
      const answer = callback?.apply(this, given);
      panel.draw();
      return answer;
    };
  }
  const { onConfigure } = node;
  node.onConfigure = function (...given) {
    const answer = onConfigure?.apply(this, given);
    panel.draw();
    return answer;
  };
}

app.registerExtension({
  name: "LiveAvatar.Live",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    api.addEventListener("liveavatar.talk", ({ detail }) => invited(detail));
    for (const end of ["success", "interrupted", "error"]) api.addEventListener(`execution_${end}`, () => talk?.close());
    const kept = sessionStorage.getItem(KEPT);
    if (kept) invited(JSON.parse(kept), true);
  },
  nodeCreated(node) {
    if ((node.comfyClass ?? node.type) !== LIVE) return;
    const panel = new LivePanel(node);
    drawn.add(new WeakRef(panel));
    mount(node, panel);
    watchWidgets(node, panel);
  },
});
