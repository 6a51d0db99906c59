// Watches a live talk over WebRTC: picture and sound as tracks, played the moment they come.
const GATHERING = 1000; // ms that addresses of this machine are waited for

export class Peer {
  ahead = 0; // seconds that the browser holds back before it plays
  connected = false;
  chunks = [];

  // keeps: what is watched, for `file`. on: `connected` and `lost`, called once each at most.
  constructor({ video, keeps, on = {} }) {
    Object.assign(this, { video, keeps, on });
    this.stream = new MediaStream();
    const connection = (this.connection = new RTCPeerConnection());
    for (const kind of ["video", "audio"]) connection.addTransceiver(kind, { direction: "recvonly" });
    connection.ontrack = ({ track, receiver }) => {
      receiver.jitterBufferTarget = 0;
      this.stream.addTrack(track);
    };
    connection.onconnectionstatechange = () => {
      const state = connection.connectionState;
      if (state === "connected" && !this.connected) this.show();
      else if (state === "failed" || state === "closed" || (state === "disconnected" && this.connected)) this.lose();
    };
    this.timer = setInterval(() => this.measure(), 1000);
  }

  // What the server has to answer: SDP with all addresses in it.
  async offer() {
    const { connection } = this;
    const gathered = new Promise((done) => {
      connection.onicegatheringstatechange = () => connection.iceGatheringState === "complete" && done();
      setTimeout(done, GATHERING);
    });
    await connection.setLocalDescription();
    await gathered;
    return connection.localDescription.sdp;
  }

  take(sdp) {
    return this.connection.setRemoteDescription({ type: "answer", sdp }).catch(() => this.lose());
  }

  show() {
    this.connected = true;
    this.video.playbackRate = 1;
    this.video.removeAttribute("src"); // or it would be loaded again when the tracks have gone
    this.video.srcObject = this.stream;
    this.video.play().catch(() => {});
    if (this.keeps) this.record();
    this.on.connected?.();
  }

  lose() {
    const { lost } = this.on;
    this.on = {};
    this.close();
    lost?.();
  }

  record() {
    const types = ["video/mp4;codecs=avc1.42E01F,opus", "video/mp4", "video/webm"];
    const mimeType = types.find((type) => window.MediaRecorder?.isTypeSupported(type));
    if (!mimeType) return;
    this.recorder = new MediaRecorder(this.stream, { mimeType });
    this.recorder.ondataavailable = ({ data }) => this.chunks.push(data);
    this.recorder.start(1000);
  }

  // What has come so far, as one file.
  get file() {
    return new Blob(this.chunks, { type: this.recorder?.mimeType.split(";")[0] });
  }

  async measure() {
    const before = this.held ?? { jitterBufferDelay: 0, jitterBufferEmittedCount: 0 };
    for (const report of (await this.connection.getStats()).values()) {
      if (report.type !== "inbound-rtp" || report.kind !== "video") continue;
      const shown = report.jitterBufferEmittedCount - before.jitterBufferEmittedCount;
      if (shown > 0) this.ahead = (report.jitterBufferDelay - before.jitterBufferDelay) / shown;
      this.held = report;
    }
  }

  close() {
    this.on = {};
    clearInterval(this.timer);
    if (this.recorder?.state === "recording") this.recorder.stop();
    this.connection.onconnectionstatechange = null;
    this.connection.close();
    if (this.video.srcObject === this.stream) this.video.srcObject = null;
  }
}
