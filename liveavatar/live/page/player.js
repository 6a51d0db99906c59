// Plays a stream of fragmented MP4 as it comes, close to its end.
const BEGIN = 0.25; // seconds that have to be there before it plays
const SPARE = [0.1, 0.4]; // seconds that should be left to play when the next piece comes: at first, and after many stalls
const LOOKED_AT = 18; // pieces, the least of which counts: three of a block come at once, with more left for each
const BLOCK = 0.48; // seconds of three pieces
const KEPT = 30; // seconds that stay behind what plays

export class Player {
  // keeps: what has come, for `file`.
  constructor(video, mime, keeps) {
    Object.assign(this, { video, mime, keeps });
    this.waiting = [];
    this.recording = [];
    [this.spare] = SPARE;
    this.open();
    video.addEventListener("waiting", this.wait);
    this.timer = setInterval(() => this.keepUp(), 200);
  }

  // A new stream: it begins with a header of its own, and its times begin at 0.
  open() {
    this.waiting = [];
    this.left = [];
    this.buffer = null;
    this.source = new MediaSource();
    this.source.addEventListener("sourceopen", () => {
      if (this.buffer || this.source.readyState !== "open") return;
      this.buffer = this.source.addSourceBuffer(this.mime);
      this.buffer.mode = "segments";
      this.buffer.addEventListener("updateend", () => {
        this.append();
        this.keepUp();
      });
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
    if (!this.waiting.length && !this.video.paused) this.left = [...this.left.slice(1 - LOOKED_AT), this.ahead];
    if (this.keeps) this.recording.push(data);
    this.waiting.push(data);
    this.append();
  }

  headers = 0;
  stalled = false;
  left = []; // seconds that were left to play when the latest pieces came

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

  // Seconds that a picture waits here for its turn.
  get held() {
    return this.left.length ? this.left.at(-1) : this.ahead;
  }

  // Begin when there is a little, go a trifle faster or slower until as little is left as can be, jump when there is far
  // too much.
  keepUp() {
    const video = this.video, ranges = video.buffered;
    if (!ranges.length) return;
    const start = ranges.start(ranges.length - 1), near = ranges.end(ranges.length - 1) - BLOCK - this.spare;
    if (video.currentTime < start || this.ahead > 3) video.currentTime = Math.max(start, near);
    if (video.paused && this.ahead > BEGIN) this.play();
    if (this.stalled && this.ahead > BEGIN) {
      this.stalled = false;
      video.currentTime = Math.max(video.currentTime, near);
    }
    const more = this.left.length ? Math.min(...this.left) - this.spare : 0;
    video.playbackRate = more > 0.3 ? 1.1 : more > 0.06 ? 1.04 : more < -0.06 ? 0.98 : 1;
  }

  // It has stalled. Left alone, browsers wait for more and more each time; told to go anywhere, they begin at once.
  wait = () => {
    const { video } = this;
    if (video.srcObject || video.seeking || video.readyState > 2 || !this.left.length) return;
    this.stalled = true;
    this.left = [];
    this.spare = Math.min(this.spare + 0.05, SPARE[1]);
  };

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
    this.video.removeEventListener("waiting", this.wait);
    URL.revokeObjectURL(this.video.src);
    this.video.removeAttribute("src");
    this.video.load();
  }
}

function isHeader(data) {
  const bytes = new Uint8Array(data, 4, 4);
  return String.fromCharCode(...bytes) === "ftyp";
}
