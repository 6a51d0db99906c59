// The client of a live talk, by the contract of docs/live.md: its WebSocket, what it plays and what it hears. Shared by
// the page of `liveavatar live` and the panel in ComfyUI.
import { Peer } from "./peer.js";
import { Player } from "./player.js";

const VERSION = 1;
const MOST_BEHIND = 4; // seconds of speech that wait; a microphone says no more where the avatar is too slow for it
const HEARD = 0.64; // seconds of speech that wait in any case: a block and its look-ahead
const TRIES = 8; // to come back after a cut

export class LiveClient {
  talking = false;
  paused = false;
  voice = false; // whether the server has a voice for typed words
  listening = true; // whether the avatar hears the microphone
  queued = 0; // seconds of speech that wait
  lag = 0; // seconds from a sample of sound to its picture, at the server
  playout = 0; // seconds that a picture waits at the server for its turn, over WebRTC
  webrtc = false; // whether server and browser have WebRTC
  lowDelay = false; // whether the talk is to be watched over WebRTC
  microphone = null;
  saying = null; // the sound file that is being said
  player = null;
  peer = null;
  resume = "";
  retries = 0;

  // url: of the WebSocket. on: functions by the type of the message they want, after it had its effect here; and
  // `lost` (whether it tries again), `closed`, `unplayable`. persistent: come back also before a talk has begun. keeps:
  // what was watched, for `file`.
  constructor({ url, token = "", video, on = {}, persistent = false, keeps = true }) {
    Object.assign(this, { url, token, video, on, persistent, keeps });
    video.addEventListener("error", () => this.video.error && this.on.unplayable?.());
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  // Seconds from what is spoken to its picture on this page.
  get delay() {
    const shown = this.peer?.connected ? this.playout + this.peer.ahead : (this.player?.held ?? 0);
    return this.lag + shown + (this.microphone ? Math.max(0, this.queued - HEARD) : 0);
  }

  connect() {
    const socket = (this.socket = new WebSocket(this.url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.send("hello", { version: VERSION, token: this.token, ...(this.resume && { resume: this.resume }) });
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.told(JSON.parse(data)) : this.player?.push(data));
    socket.onclose = () => socket === this.socket && this.lost();
  }

  send(type, fields = {}) {
    if (this.open) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  sendBytes(data) {
    if (this.open) this.socket.send(data);
  }

  lost() {
    if ((this.talking || this.persistent) && this.retries < TRIES) {
      this.on.lost?.(true);
      this.timer = setTimeout(() => this.connect(), 250 * 2 ** Math.min(this.retries++, 4));
    } else {
      this.ended();
      this.on.lost?.(false);
    }
  }

  told(message) {
    if (message.type === "ready") {
      this.retries = 0;
      this.webrtc = message.webrtc && Boolean(window.RTCPeerConnection);
      if (window.MediaSource?.isTypeSupported(message.mime)) this.player ??= new Player(this.video, message.mime, this.keeps);
      else if (this.webrtc) this.lowDelay = true;
      else return this.on.unplayable?.();
      this.voice = message.voice;
      this.gone = !message.resumed && Boolean(this.resume); // the talk that it wanted to come back to
      if (this.gone) this.ended();
    } else if (message.type === "started") {
      Object.assign(this, { talking: true, resume: message.resume });
      if (this.microphone) this.tellRate();
      this.call();
    } else if (message.type === "answer") {
      this.peer?.take(message.sdp);
    } else if (message.type === "stats") {
      Object.assign(this, { queued: message.queued_s, lag: message.lag_ms / 1000, listening: message.listening });
      this.playout = message.playout_ms / 1000;
    } else if (message.type === "bye") this.ended();
    this.on[message.type]?.(message);
  }

  // Watch over WebRTC where that is wanted; until it is connected, and if it breaks, the server sends fragments.
  async call() {
    this.hangUp();
    if (!this.webrtc || !this.lowDelay || !this.talking) return;
    const peer = (this.peer = new Peer({ video: this.video, keeps: this.keeps, on: { lost: () => this.hangUp() } }));
    this.send("offer", { sdp: await peer.offer() });
  }

  hangUp() {
    const peer = this.peer;
    this.peer = null;
    peer?.close();
    if (peer?.connected) {
      this.called = peer;
      this.player?.open();
    }
    if (peer && this.talking) this.send("hang_up");
  }

  setLowDelay(wanted) {
    this.lowDelay = wanted;
    this.call();
    this.called = null;
  }

  // What was watched so far, as one file.
  get file() {
    return this.called?.file ?? this.player?.file ?? new Blob();
  }

  ended() {
    this.hangUp();
    this.persistent = this.talking = this.paused = false;
    this.resume = "";
    this.mute();
  }

  // Leave for good: everything that the browser lent is given back.
  close() {
    this.persistent = false;
    clearTimeout(this.timer);
    this.ended();
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    this.player?.close();
    this.player = null;
  }

  pause() {
    this.paused = !this.paused;
    this.send(this.paused ? "pause" : "resume");
  }

  // Hear the microphone from now on; "" or why not: "insecure", "refused".
  async listen() {
    if (!navigator.mediaDevices) return "insecure";
    let stream, context;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, channelCount: 1 } });
      context = new AudioContext();
      await context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    } catch {
      stream?.getTracks().forEach((track) => track.stop());
      context?.close();
      return "refused";
    }
    const node = new AudioWorkletNode(context, "live-avatar-microphone");
    node.port.onmessage = ({ data }) => {
      if (this.talking && this.listening && !this.paused && this.queued < MOST_BEHIND) this.sendBytes(integers(data));
    };
    context.createMediaStreamSource(stream).connect(node);
    this.mute();
    this.microphone = { stream, context };
    this.tellRate();
    return "";
  }

  tellRate() {
    this.send("audio", { rate: this.microphone.context.sampleRate, encoding: "s16le" });
  }

  mute() {
    this.microphone?.stream.getTracks().forEach((track) => track.stop());
    this.microphone?.context.close();
    if (this.microphone && this.talking) this.send("end_of_speech");
    this.microphone = null;
  }

  // Drop what has not been said.
  interrupt() {
    this.saying = null;
    this.send("interrupt");
  }

  // Say what a sound file holds; another one takes its place.
  async pushFile(file) {
    const context = new AudioContext();
    const sound = await context.decodeAudioData(await file.arrayBuffer());
    this.saying = file;
    this.send("audio", { rate: sound.sampleRate, encoding: "s16le" });
    const samples = sound.getChannelData(0), piece = sound.sampleRate;
    for (let start = 0; start < samples.length && this.talking && this.saying === file; start += piece) {
      this.sendBytes(integers(samples.slice(start, start + piece)));
      if (start > 10 * piece) await new Promise((done) => setTimeout(done, 990)); // at most ten seconds wait there
    }
    if (this.saying === file) this.send("end_of_speech");
    context.close();
  }

  sendPortrait(picture) {
    this.send("portrait");
    this.sendBytes(picture);
  }
}

function integers(samples) {
  const whole = new Int16Array(samples.length);
  samples.forEach((value, i) => (whole[i] = Math.max(-32768, Math.min(32767, Math.round(value * 32767)))));
  return whole.buffer;
}
