// What web/js/live.js shows of a talk, with a stand-in for the client that it shares with the page of `liveavatar live`.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { api, app, extensions, graph, say, settings } from "./frontend.mjs";

const kept = new Map();
const clients = [];
class LiveClient {
  constructor(given) {
    Object.assign(this, given, { open: true, talking: false, voice: true, listening: true, microphone: null, delay: 0.9 });
    Object.assign(this, { sent: [], player: { blocked: false }, fault: "", speakers: 1, speaker: 1 });
    clients.push(this);
  }
  connect() {}
  send(type, fields = {}) {
    this.sent.push({ type, ...fields });
  }
  async listen() {
    if (!this.fault) this.microphone = {};
    return this.fault;
  }
  setSpeaker(speaker) {
    this.speaker = speaker;
  }
  interrupt() {
    this.send("interrupt");
  }
  setLowDelay(wanted) {
    this.lowDelay = wanted;
  }
  mute() {
    this.microphone = null;
  }
  close() {
    this.mute();
    this.closed = true;
  }
}
globalThis.liveAvatarClient = LiveClient;
globalThis.Option = class {
  constructor(text, value) {
    Object.assign(this, { text, value });
  }
};
globalThis.location = new URL("http://127.0.0.1:8188/");
globalThis.sessionStorage = {
  getItem: (name) => kept.get(name) ?? null,
  setItem: (name, value) => kept.set(name, value),
  removeItem: (name) => kept.delete(name),
};
Object.defineProperty(globalThis, "navigator", { value: { language: "en", mediaDevices: {} }, configurable: true });
const asked = [];
api.apiURL = (path) => {
  asked.push(path);
  if (path.endsWith("client.js")) return "data:text/javascript,export const LiveClient = globalThis.liveAvatarClient;";
  return `/api${path}`;
};

await import("../../web/js/live.js");
extensions.forEach((extension) => extension.setup());

const INVITATION = { node: "7", prompt: "p", token: "t", source: "microphone", longest_s: 600 };
const STATS = { state: "speaking", block: 25, lag_ms: 700, fps: 25, queued_s: 0.1, listening: true, speakers: [{ state: "speaking" }] };
const soon = () => new Promise((resolve) => setTimeout(resolve));
// What a talk that was just begun made for itself; a script that is imported takes its time.
const newest = async (before) => {
  while (clients.length === before) await soon();
  return clients.at(-1);
};
const panel = () => app.rootGraph.getNodeById(7).widgets.at(-1).element;
const seen = (one) => (one.hidden ? "" : (one.own ?? String(one)) + (one.childNodes ?? []).map(seen).join(""));
const text = () => seen(panel());
const shown = (element) => !element.hidden;
const buttons = () => panel().childNodes.filter((one) => one.className === "controls" && shown(one));
const named = (name) => buttons().flatMap((one) => one.childNodes).find((one) => one.textContent === name);

function open(values = { source: "microphone", longest_minutes: 10 }) {
  const root = graph([{ id: 7, type: "LiveAvatarLive" }]);
  const [node] = root.nodes;
  node.setSize = (size) => (node.size = size);
  node.widgets.push(...Object.entries(values).map(([name, value]) => ({ name, value })));
  app.rootGraph = root;
  extensions.forEach((extension) => extension.nodeCreated(node));
  return node;
}

async function talking(invitation = INVITATION) {
  const before = clients.length;
  say("liveavatar.talk", invitation);
  say("liveavatar.progress", { node: "7", phase: "loading the network", share: 0 });
  const client = await newest(before);
  client.on.ready();
  await soon();
  client.talking = true;
  say("liveavatar.progress", { node: "7", phase: "talking", share: 0.1 });
  client.on.started();
  client.on.stats(STATS);
  return client;
}

beforeEach(() => {
  say("execution_success", {});
  settings["Comfy.Locale"] = "en";
  navigator.mediaDevices = {};
  open();
});

test("before a run it says what to do, and where there is no microphone how to get one", () => {
  assert.equal(text(), "Press Run and speak: it listens to this browser's microphone, for at most 10 minutes.");
  const node = open({ source: "AUDIO input", longest_minutes: 3 });
  assert.ok(text().includes("audio, for at most 3 minutes"));
  navigator.mediaDevices = undefined;
  const source = node.widgets.find((one) => one.name === "source");
  source.value = "microphone";
  source.callback();
  for (const words of ["ssh -L 8188:localhost:8188", "http://localhost:8188", "--tls-keyfile"])
    assert.ok(text().includes(words), text());
});

test("an invitation is answered at once, with its token, at the place of its prompt and node", async () => {
  const client = await talking({ ...INVITATION, node: "7", prompt: "a b" });
  assert.equal(String(client.url), "ws://127.0.0.1:8188/api/liveavatar/live/talks/a%20b/7");
  assert.equal(client.token, "t");
  assert.ok(asked.includes("/liveavatar/live/page/client.js"));
});

test("a talk that is over before its script was loaded is not joined, nor one whose place another took", async () => {
  const before = clients.length;
  say("liveavatar.talk", { ...INVITATION, token: "over" });
  say("execution_interrupted", {});
  say("liveavatar.talk", { ...INVITATION, token: "first" });
  const client = await talking({ ...INVITATION, token: "second" });
  assert.deepEqual(clients.slice(before), [client]);
  assert.equal(client.token, "second");
});

test("while it talks there are the picture, its state, the delay and the buttons", async () => {
  const client = await talking();
  assert.equal(panel().all("live")[0].firstChild, client.video);
  for (const words of ["talking", "12 s of 10 min", "0.90 s delay · 25.0 fps"]) assert.ok(text().includes(words), text());
  named("Stop talking").onclick();
  named("Mute microphone").onclick();
  assert.equal(client.microphone, null);
  assert.ok(text().includes("The microphone is off."));
  named("Microphone").onclick();
  named("Stop").onclick();
  assert.deepEqual(client.sent.map((one) => one.type), ["interrupt", "bye"]);
});

test("low delay may be chosen where both sides have WebRTC, and nothing is kept in the page", async () => {
  const client = await talking();
  assert.ok(!shown(named("Low delay")));
  assert.equal(client.keeps, false);
  client.webrtc = true;
  client.on.stats(STATS);
  assert.ok(shown(named("Low delay")));
  named("Low delay").onclick();
  assert.ok(client.lowDelay);
  assert.equal(named("Low delay").className, "on");
  named("Low delay").onclick();
  assert.ok(!client.lowDelay);
});

test("where it is sent, and what is wrong there, is said below", async () => {
  const client = await talking();
  const outputs = [{ to: "rtmp://a.example/live/***", state: "sending", what: "", skipped_blocks: 0 }];
  client.on.stats({ ...STATS, outputs });
  assert.ok(text().includes("rtmp://a.example/live/***: is being sent"), text());
  client.on.stats({ ...STATS, outputs: [{ ...outputs[0], state: "lost", what: "It did not answer." }] });
  assert.ok(text().includes("It did not answer."), text());
});

test("sounds need neither microphone nor typed words", async () => {
  const client = await talking({ ...INVITATION, source: "AUDIO input" });
  assert.equal(client.microphone, null);
  assert.equal(buttons().length, 2, "the buttons and the prompt");
  assert.ok(!shown(buttons()[0].childNodes[0]));
});

test("of several speakers it asks who speaks into the microphone, and says who is speaking", async () => {
  const alone = await talking();
  const chosen = () => panel().childNodes.flatMap((one) => one.childNodes ?? []).find((one) => one.tag === "select");
  assert.ok(!shown(chosen()));
  alone.on.bye();
  const client = await talking();
  client.speakers = 2;
  client.on.stats({ ...STATS, speakers: [{ state: "idle" }, { state: "speaking" }] });
  assert.ok(shown(chosen()));
  assert.equal(chosen().attributes["aria-label"], "Who speaks into the microphone");
  assert.deepEqual(chosen().childNodes.map((one) => [one.text, one.value]), [["Speaker 1", 1], ["Speaker 2", 2]]);
  assert.ok(text().includes("talking · Speaker 2"), text());
  chosen().value = "2";
  chosen().onchange();
  assert.equal(client.speaker, 2);
  const typed = buttons()[1];
  typed.childNodes.find((one) => one.tag === "input").value = "hello";
  typed.onsubmit({ preventDefault() {} });
  assert.deepEqual(client.sent.at(-1), { type: "say", text: "hello", voice: "en-us", speaker: 2 });
  const sounds = await talking({ ...INVITATION, source: "AUDIO input" });
  sounds.speakers = 2;
  sounds.on.stats(STATS);
  assert.ok(!shown(chosen()));
});

test("a microphone that is not given is said, and the talk goes on", async () => {
  const listen = LiveClient.prototype.listen;
  for (const [fault, words] of [["refused", "was not allowed"], ["insecure", "--tls-keyfile"]]) {
    LiveClient.prototype.listen = async () => fault;
    const client = await talking();
    assert.ok(text().includes(words), text());
    assert.ok(!client.closed);
  }
  LiveClient.prototype.listen = listen;
});

for (const [end, line] of [["cancelled", "Cancelled."], ["failed", "Failed. The error says why."], ["done", "Recorded 12 s."]])
  test(`${end}: the microphone is given back, and one line remains`, async () => {
    const client = await talking();
    assert.ok(client.microphone);
    say("liveavatar.progress", { node: "7", phase: end, share: 1, seconds: 12 });
    assert.ok(client.closed && client.microphone === null);
    assert.equal(text(), line);
    assert.ok(panel().all("live")[0].hidden && buttons().length === 0);
    assert.equal(kept.size, 0);
  });

test("ComfyUI's own word is enough, where the node of the talk is not shown", async () => {
  const client = await talking();
  app.rootGraph = graph([]);
  say("execution_interrupted", {});
  assert.ok(client.closed && client.microphone === null);
});

test("it goes on while another workflow is shown, and new nodes show it", async () => {
  const client = await talking();
  open();
  say("liveavatar.progress", { node: "7", phase: "talking", share: 0.2 });
  assert.ok(!client.closed);
  assert.equal(panel().all("live")[0].firstChild, client.video);
});

test("a page that was reloaded comes back without the microphone", async () => {
  kept.set("liveavatar.talk", JSON.stringify(INVITATION));
  const before = clients.length;
  extensions.find((one) => one.name === "LiveAvatar.Live").setup();
  say("liveavatar.progress", { node: "7", phase: "talking", share: 0.2 });
  const client = await newest(before);
  assert.equal(client.persistent, false, "a talk that is over is not asked for again and again");
  client.on.ready();
  client.talking = true;
  client.on.started();
  assert.ok(client.persistent && client.microphone === null);
  assert.ok(text().includes("The microphone is off."));
});

test("its words are Chinese where ComfyUI is", async () => {
  settings["Comfy.Locale"] = "zh";
  open();
  assert.ok(text().includes("麦克风"));
  await talking();
  assert.ok(named("停止说话") && named("结束"));
});
