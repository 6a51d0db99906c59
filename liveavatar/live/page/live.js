// The page of `liveavatar live`: buttons and words around a `LiveClient`.
import { LiveClient } from "./client.js";
import { language, words } from "./words.js";

const $ = (id) => document.getElementById(id);
let starting = false, talked = false, portrait = null;

const client = new LiveClient({
  url: `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`,
  token: new URLSearchParams(location.hash.slice(1)).get("token") || "",
  video: $("video"),
  on: {
    ready() {
      $("say").placeholder = client.voice ? words.say : words.noVoice;
      $("webrtc-row").hidden = !client.webrtc;
      $("webrtc").checked = client.lowDelay;
      if (client.gone) ended();
      show();
    },
    waiting(message) {
      say(words.waiting.replace("{n}", message.ahead));
    },
    started(message) {
      [starting, talked] = [false, true];
      $("video").style.aspectRatio = `${message.width} / ${message.height}`;
      say("");
      show();
    },
    stats(message) {
      $("state").textContent = words.states[message.state] ?? message.state;
      $("delay").textContent = `${client.delay.toFixed(2)} s`;
      $("fps").textContent = message.fps?.toFixed(1) ?? "–";
      $("queued").textContent = `${message.queued_s.toFixed(1)} s`;
      $("late").textContent = message.late_blocks;
      $("outputs").textContent = message.outputs.map((one) => one.what || `${one.to}: ${words.outputs[one.state]}`).join("\n");
    },
    error(message) {
      say(`${message.what} ${message.nearest}`);
      starting = false;
      show();
    },
    bye: ended,
    unplayable() {
      say(words.unplayable);
    },
    lost(again) {
      if (again) say(words.lost);
      else ended();
    },
  },
});

function say(text) {
  $("message").textContent = text;
}

function ended() {
  if (talked) {
    say(words.ended);
    $("download").hidden = false;
  }
  starting = talked = false;
  show();
}

function show() {
  $("start").textContent = client.talking ? words.end : words.start;
  $("start").disabled = starting || !client.open;
  for (const id of ["microphone", "interrupt", "pause", "prompt-button", "sound"]) $(id).disabled = !client.talking;
  $("say").disabled = $("say-button").disabled = !client.talking || !client.voice;
  $("pause").textContent = client.paused ? words.resume : words.pause;
  $("microphone").classList.toggle("on", Boolean(client.microphone));
}

async function listen() {
  const fault = await client.listen();
  if (fault) say(words[fault]);
  show();
}

function keep() {
  const { file } = client, link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(file);
  link.download = `live-avatar.${file.type.endsWith("webm") ? "webm" : "mp4"}`;
}

// The file that was chosen; the same one may be chosen again.
function taken(input) {
  const [file] = input.files;
  input.value = "";
  return file;
}

function begin() {
  const prompt = $("prompt").value.trim();
  starting = true;
  show();
  $("download").hidden = true;
  say(words.loading);
  if (portrait) client.sendPortrait(portrait);
  client.send("start", prompt ? { prompt } : {});
}

function wire() {
  document.documentElement.lang = language;
  const texts = { "say-button": "sayButton", "prompt-button": "promptButton", interrupt: "interrupt", microphone: "microphone",
    "portrait-label": "portrait", "sound-label": "sound", download: "download", "delay-label": "delay", "fps-label": "fps",
    "queued-label": "queued", "late-label": "late", "webrtc-label": "webrtc" };
  for (const [id, name] of Object.entries(texts)) $(id).textContent = words[name];
  $("prompt").placeholder = words.prompt;
  $("download").onclick = keep;
  $("webrtc").onchange = ({ target }) => client.setLowDelay(target.checked);
  $("start").onclick = () => (client.talking ? client.send("bye") : begin());
  $("microphone").onclick = () => (client.microphone ? (client.mute(), show()) : listen());
  $("interrupt").onclick = () => client.interrupt();
  $("pause").onclick = () => { client.pause(); show(); };
  $("say-form").onsubmit = (event) => { event.preventDefault(); if ($("say").value.trim()) client.send("say", { text: $("say").value, voice: language === "zh" ? "cmn" : "en-us" }); $("say").value = ""; };
  $("prompt-form").onsubmit = (event) => { event.preventDefault(); if (client.talking && $("prompt").value.trim()) client.send("prompt", { text: $("prompt").value }); };
  $("portrait").onchange = async ({ target }) => { portrait = await taken(target).arrayBuffer(); if (client.talking) client.sendPortrait(portrait); };
  $("sound").onchange = ({ target }) => client.pushFile(taken(target));
  client.connect();
  show();
}

wire();
