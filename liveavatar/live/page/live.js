// The page of `liveavatar live`: talks to the server by the contract of docs/live.md.
import { Player } from "./player.js";
import { language, words } from "./words.js";

const VERSION = 1;
const MOST_BEHIND = 4; // seconds of speech that wait; a microphone says no more where the avatar is too slow for it
const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
let socket, player, resume = "", talking = false, starting = false, paused = false, microphone = null, portrait = null, retries = 0, queued = 0;

function send(type, fields = {}) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type, ...fields }));
}

function say(text) {
  $("message").textContent = text;
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => send("hello", { version: VERSION, token, ...(resume && { resume }) });
  socket.onmessage = ({ data }) => (typeof data === "string" ? told(JSON.parse(data)) : player?.push(data));
  socket.onclose = lost;
}

function lost() {
  if (talking && retries < 8) {
    say(words.lost);
    setTimeout(connect, 250 * 2 ** Math.min(retries++, 4));
  } else ended();
}

const ANSWERS = {
  ready(message) {
    retries = 0;
    if (!MediaSource.isTypeSupported(message.mime)) return say(words.unplayable);
    player ??= new Player($("video"), message.mime);
    $("say").placeholder = message.voice ? words.say : words.noVoice;
    $("say").dataset.voice = message.voice ? "yes" : "";
    if (!message.resumed && resume) ended();
    resume = message.resumed ? resume : "";
    show();
  },
  waiting(message) {
    say(words.waiting.replace("{n}", message.ahead));
  },
  started(message) {
    [talking, starting] = [true, false];
    resume = message.resume;
    $("video").style.aspectRatio = `${message.width} / ${message.height}`;
    say("");
    show();
  },
  stats(message) {
    $("state").textContent = words.states[message.state] ?? message.state;
    queued = message.queued_s;
    const delay = message.lag_ms / 1000 + player.ahead + (microphone ? Math.max(0, queued - 0.64) : 0);
    $("delay").textContent = `${delay.toFixed(2)} s`;
    $("fps").textContent = message.fps?.toFixed(1) ?? "–";
    $("queued").textContent = `${message.queued_s.toFixed(1)} s`;
    $("late").textContent = message.late_blocks;
  },
  error(message) {
    say(`${message.what} ${message.nearest}`);
    starting = false;
    show();
  },
  bye: ended,
};

function told(message) {
  ANSWERS[message.type]?.(message);
}

function ended() {
  if (talking) {
    say(words.ended);
    $("download").href = URL.createObjectURL(player.file);
    $("download").hidden = false;
  }
  talking = starting = paused = false;
  resume = "";
  muted();
  show();
}

function show() {
  $("start").textContent = talking ? words.end : words.start;
  $("start").disabled = starting || socket?.readyState !== WebSocket.OPEN;
  for (const id of ["microphone", "interrupt", "pause", "prompt-button", "sound"]) $(id).disabled = !talking;
  $("say").disabled = $("say-button").disabled = !talking || !$("say").dataset.voice;
  $("pause").textContent = paused ? words.resume : words.pause;
  $("microphone").classList.toggle("on", Boolean(microphone));
}

async function heard() {
  if (!navigator.mediaDevices) return say(words.insecure);
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, channelCount: 1 } });
    const context = new AudioContext();
    await context.audioWorklet.addModule("microphone.js");
    const node = new AudioWorkletNode(context, "live-avatar-microphone");
    send("audio", { rate: context.sampleRate, encoding: "s16le" });
    node.port.onmessage = ({ data }) => {
      if (socket.readyState === WebSocket.OPEN && !paused && queued < MOST_BEHIND) socket.send(integers(data));
    };
    context.createMediaStreamSource(stream).connect(node);
    microphone = { stream, context };
  } catch {
    say(words.refused);
  }
  show();
}

function muted() {
  microphone?.stream.getTracks().forEach((track) => track.stop());
  microphone?.context.close();
  if (microphone) send("end_of_speech");
  microphone = null;
}

function integers(samples) {
  const whole = new Int16Array(samples.length);
  samples.forEach((value, i) => (whole[i] = Math.max(-32768, Math.min(32767, Math.round(value * 32767)))));
  return whole.buffer;
}

async function pushFile(file) {
  const context = new AudioContext();
  const sound = await context.decodeAudioData(await file.arrayBuffer());
  send("audio", { rate: sound.sampleRate, encoding: "s16le" });
  const samples = sound.getChannelData(0), piece = sound.sampleRate;
  for (let start = 0; start < samples.length && talking; start += piece) {
    socket.send(integers(samples.slice(start, start + piece)));
    if (start > 10 * piece) await new Promise((done) => setTimeout(done, 990)); // at most ten seconds wait there
  }
  send("end_of_speech");
  context.close();
}

function sendPortrait() {
  send("portrait");
  socket.send(portrait);
}

function begin() {
  const prompt = $("prompt").value.trim();
  starting = true;
  show();
  $("download").hidden = true;
  say(words.loading);
  if (portrait) sendPortrait();
  send("start", prompt ? { prompt } : {});
}

function wire() {
  document.documentElement.lang = language;
  const texts = { "say-button": "sayButton", "prompt-button": "promptButton", interrupt: "interrupt", microphone: "microphone",
    "portrait-label": "portrait", "sound-label": "sound", download: "download", "delay-label": "delay", "fps-label": "fps",
    "queued-label": "queued", "late-label": "late" };
  for (const [id, name] of Object.entries(texts)) $(id).textContent = words[name];
  $("prompt").placeholder = words.prompt;
  $("download").download = "live-avatar.mp4";
  $("start").onclick = () => (talking ? send("bye") : begin());
  $("microphone").onclick = () => (microphone ? (muted(), show()) : heard());
  $("interrupt").onclick = () => send("interrupt");
  $("pause").onclick = () => { paused = !paused; send(paused ? "pause" : "resume"); show(); };
  $("say-form").onsubmit = (event) => { event.preventDefault(); if ($("say").value.trim()) send("say", { text: $("say").value, voice: language === "zh" ? "cmn" : "en-us" }); $("say").value = ""; };
  $("prompt-form").onsubmit = (event) => { event.preventDefault(); if (talking && $("prompt").value.trim()) send("prompt", { text: $("prompt").value }); };
  $("portrait").onchange = async ({ target }) => { portrait = await target.files[0].arrayBuffer(); if (talking) sendPortrait(); };
  $("sound").onchange = ({ target }) => pushFile(target.files[0]);
  connect();
  show();
}

wire();
