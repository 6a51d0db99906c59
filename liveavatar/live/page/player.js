// Plays a stream of fragmented MP4 as it comes, close to its end.
const AHEAD = 0.25; // seconds that are kept between what plays and what has come
const KEPT = 30; // seconds that stay behind what plays

export class Player {
  constructor(video, mime) {
    this.video = video;
    this.mime = mime;
    this.waiting = [];
    this.recording = [];
    this.open();
    this.timer = setInterval(() => this.keepUp(), 200);
  }

  // A new stream: it begins with a header of its own, and its times begin at 0.
  open() {
    this.waiting = [];
    this.buffer = null;
    this.source = new MediaSource();
    this.source.addEventListener("sourceopen", () => {
      if (this.buffer || this.source.readyState !== "open") return;
      this.buffer = this.source.addSourceBuffer(this.mime);
      this.buffer.mode = "segments";
      this.buffer.addEventListener("updateend", () => this.append());
      this.append();
    });
    URL.revokeObjectURL(this.video.src);
    this.video.src = URL.createObjectURL(this.source);
  }

  push(data) {
    if (isHeader(data)) {
      if (this.headers++) this.open();
      this.recording = [];
    }
    this.recording.push(data);
    this.waiting.push(data);
    this.append();
  }

  headers = 0;

  append() {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || this.source.readyState !== "open") return;
    const behind = this.video.currentTime - KEPT;
    if (buffer.buffered.length && buffer.buffered.start(0) < behind - 10) {
      buffer.remove(0, behind);
    } else if (this.waiting.length) {
      buffer.appendBuffer(this.waiting.shift());
    }
  }

  // Seconds that have come and are not played yet.
  get ahead() {
    const ranges = this.video.buffered;
    return ranges.length ? Math.max(0, ranges.end(ranges.length - 1) - this.video.currentTime) : 0;
  }

  // Begin when there is a little, go a trifle faster when there is more than needed, jump when there is far too much.
  keepUp() {
    const video = this.video, ranges = video.buffered;
    if (!ranges.length) return;
    const last = ranges.length - 1;
    if (video.currentTime < ranges.start(last) || this.ahead > 3) video.currentTime = Math.max(ranges.start(last), ranges.end(last) - AHEAD);
    if (video.paused && this.ahead > AHEAD) this.play();
    video.playbackRate = this.ahead > 1 ? 1.08 : this.ahead > 0.7 ? 1.03 : 1;
  }

  blocked = false; // Browsers let pages make no sound before somebody has clicked there: until then it plays silently.

  play() {
    this.video.play().catch((error) => {
      if (error.name === "NotAllowedError") this.blocked = this.video.muted = true;
    });
  }

  // Somebody has clicked.
  unblock() {
    this.blocked = this.video.muted = false;
    this.play();
  }

  // What has come so far, as one file.
  get file() {
    return new Blob(this.recording, { type: "video/mp4" });
  }

  close() {
    clearInterval(this.timer);
    URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
    this.video.load();
  }
}

function isHeader(data) {
  const bytes = new Uint8Array(data, 4, 4);
  return String.fromCharCode(...bytes) === "ftyp";
}
