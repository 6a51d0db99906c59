// What web/js/liveavatar.js shows for which message. Run with: node --test tests/web

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { api, app, extensions, graph, say, settings } from "./frontend.mjs";

const web = await import("../../web/js/liveavatar.js");
const [extension] = extensions;
extension.setup();

const AT = {
  node: "7",
  phase: "generating",
  share: 0.25,
  block: 3,
  blocks: 10,
  step: 2,
  steps: 4,
  frames: 24,
  total_frames: 120,
  seconds_ready: 0.96,
  seconds: 4.8,
  fps: 38.2,
  eta: 95,
  devices: [
    { name: "cuda:0", busy: true },
    { name: "cuda:1", busy: false },
  ],
};

const nodes = () => [
  { id: 5, type: "LiveAvatarSampler" },
  { id: 7, type: "LiveAvatarDecode", inputs: { latents: [5, 0] } },
  { id: 8, type: "LiveAvatarPlan" },
  { id: 9, type: "SaveVideo", inputs: { video: [7, 0] } },
];

function open(root) {
  app.rootGraph = root;
  const all = (one) => one.nodes.flatMap((node) => [node, ...(node.subgraph ? all(node.subgraph) : [])]);
  all(root).forEach((node) => extension.nodeCreated(node));
  return root;
}

const shown = (id, root = app.rootGraph) => root.getNodeById(id).widgets[0].element;
const text = (id) => shown(id).textContent;

beforeEach(() => {
  say("execution_success", {}); // ends what an earlier test left running
  settings["Comfy.Locale"] = "en";
  open(graph(nodes()));
});

test("of a list of voices the panel says which video is made, from the second on", () => {
  say("liveavatar.progress", AT);
  assert.ok(!text(7).includes("video"));
  say("liveavatar.progress", { ...AT, item: 2 });
  assert.ok(text(7).includes("video 2 · block 3/10 · step 2/4"));
  say("liveavatar.progress", { ...AT, item: 2, phase: "encoding the voice" });
  assert.ok(text(7).includes("video 2 · encoding the voice"));
});

test("only our nodes get a widget, and it is kept out of prompts and workflows", () => {
  assert.equal(app.rootGraph.getNodeById(9).widgets.length, 0);
  for (const id of [5, 7, 8]) {
    const [widget, ...more] = app.rootGraph.getNodeById(id).widgets;
    assert.deepEqual([more.length, widget.serialize, widget.options.serialize], [0, false, false]);
  }
});

test("the node that pulls and the sampler it pulls from show the same progress", () => {
  say("liveavatar.progress", AT);
  for (const id of [5, 7]) {
    for (const words of ["block 3/10 · step 2/4", "1.0 of 4.8 s ready", "38 fps", "1 min 35 s left"])
      assert.ok(text(id).includes(words), `${words} in ${text(id)}`);
    assert.deepEqual(
      shown(id).all("dots")[0].childNodes.map((dot) => [dot.className, dot.title]),
      [["busy", "cuda:0: busy"], ["", "cuda:1: waiting"]],
    );
  }
});

test("the bar shows what is written, the block in work and its steps", () => {
  assert.deepEqual(web.marks(AT), { ready: 20, from: 20, wide: 10, inside: 50, gaps: 10 });
  assert.equal(web.marks({ ...AT, blocks: 7500, block: 7500 }).gaps, 0);
  assert.deepEqual(web.marks({ phase: "loading the network" }), { ready: 0, from: 0, wide: 0, inside: 0, gaps: 0 });
});

test("before the first block the phase is shown in words", () => {
  say("liveavatar.progress", { node: "7", phase: "loading the network", share: 0, fps: null, eta: null });
  assert.ok(text(7).includes("loading the network"));
  assert.ok(!/NaN|undefined|null/.test(text(7)), text(7));
});

test("the latest frame is shown on the node that pulls, until the end", () => {
  const frame = (id) => shown(id).all("live")[0];
  say("liveavatar.progress", AT);
  assert.ok(frame(7).hidden);
  say("liveavatar.progress", { ...AT, preview: { filename: "a.jpg", subfolder: "b", type: "temp", frames: 24 } });
  say("liveavatar.progress", AT);
  assert.equal(frame(7).firstChild.src, "/api/view?filename=a.jpg&subfolder=b&type=temp&ready=24");
  assert.ok(!frame(7).hidden && frame(5).hidden);
  say("liveavatar.progress", { ...AT, phase: "done" });
  assert.ok(frame(7).hidden);
});

test("what is ready plays on a click, and gives way to the latest frame when it ends", () => {
  const preview = { filename: "a.jpg", subfolder: "", type: "temp", frames: 12 };
  say("liveavatar.progress", { ...AT, preview, file: { filename: "a b.mp4", subfolder: "", type: "temp" } });
  const [live] = shown(7).all("live");
  live.onclick();
  const film = live.firstChild;
  assert.deepEqual([film.tag, film.src], ["video", "/api/view?filename=a+b.mp4&subfolder=&type=temp&ready=24"]);
  say("liveavatar.progress", { ...AT, preview });
  assert.equal(live.firstChild, film);
  film.onended();
  assert.equal(live.firstChild.src, "/api/view?filename=a.jpg&subfolder=&type=temp&ready=12");
});

test("the end leaves one line: what was made, in what time, how fast", () => {
  const panel = new web.RunPanel("");
  panel.show(AT, 1000);
  panel.show({ node: "7", phase: "done", share: 1, seconds: 5 }, 4100);
  assert.equal(panel.element.textContent, "5.0 s in 3.1 s, 38 fps");
  assert.ok(panel.element.className.includes("over done"));
});

test("cancelled and failed are said, by the server or by ComfyUI alone", () => {
  say("liveavatar.progress", { ...AT, phase: "cancelled" });
  assert.ok(text(7).startsWith("Cancelled after 1.0 s"));
  say("liveavatar.progress", AT);
  say("execution_interrupted", { node_id: "7" });
  assert.ok(text(5).startsWith("Cancelled"));
  say("liveavatar.progress", AT);
  say("execution_error", { node_id: "7" });
  assert.ok(text(7).startsWith("Failed"));
  assert.ok(shown(7).className.includes("failed"));
});

test("a run that ended is left alone by the next run's end", () => {
  say("liveavatar.progress", { ...AT, phase: "done" });
  const before = text(7);
  say("execution_interrupted", {});
  assert.equal(text(7), before);
});

test("messages for nodes that are not in this graph, or not ours, change nothing", () => {
  const before = [5, 7, 8].map(text);
  for (const node of ["70", "7:1", "9", "", null, undefined]) say("liveavatar.progress", { ...AT, node });
  assert.deepEqual([5, 7, 8].map(text), before);
});

test("a node in a subgraph is found by its execution id, never by its last number alone", () => {
  const inner = graph(nodes());
  open(graph([{ id: 3, type: "subgraph", subgraph: inner }, { id: 7, type: "LiveAvatarDecode" }]));
  say("liveavatar.progress", { ...AT, node: "3:7" });
  assert.ok(shown(7, inner).textContent.includes("block 3/10"));
  assert.ok(shown(5, inner).textContent.includes("block 3/10"));
  assert.ok(!text(7).includes("block"));
});

test("the sampler is found over the edges of subgraphs and through reroutes", () => {
  const sampling = graph([{ id: 1, type: "LiveAvatarSampler" }], { outputs: [[1, 0]] });
  const decoding = graph(
    [
      { id: 1, type: "Reroute", inputs: { "": [-10, 0] } },
      { id: 2, type: "LiveAvatarDecode", inputs: { latents: [1, 0] } },
    ],
    { inputs: ["latents"] },
  );
  const root = open(
    graph([
      { id: 1, type: "a", subgraph: sampling },
      { id: 2, type: "b", subgraph: decoding, inputs: { latents: [1, 0] } },
    ]),
  );
  assert.deepEqual(web.watchers(root, "2:2"), [decoding.nodes[1], sampling.nodes[0]]);
  assert.deepEqual(web.watchers(root, "2:1"), []);
});

test("a removed node is forgotten, and its own onRemoved still runs", () => {
  let called = 0;
  const [node] = graph([{ id: 7, type: "LiveAvatarGenerate", onRemoved: () => (called += 1) }]).nodes;
  extension.nodeCreated(node);
  node.onRemoved();
  assert.equal(called, 1);
});

test("the plan is a bar per device, to scale, with its limit, its key and the report", () => {
  const parts = (n) => [{ name: "weights", bytes: n * 6e9 }, { name: "KV cache", bytes: n * 2e9 }];
  const devices = [
    { name: "cuda:0", parts: parts(1), total: 8e9, capacity: 16e9 },
    { name: "cuda:1", parts: parts(0.5), total: 4e9, capacity: null },
    { name: "cpu", parts: [{ name: "text", bytes: 52e6 }], total: 52e6, capacity: null },
  ];
  say("executed", { node: "8", output: { text: ["704 x 384"], liveavatar_plan: [{ refused: null, devices }] } });
  const [first, second] = shown(8).all("bar");
  const widths = (bar) => bar.childNodes.filter((one) => one.title).map((one) => one.style.width);
  assert.deepEqual([widths(first), widths(second)], [["37.5%", "12.5%"], ["18.75%", "6.25%"]]);
  assert.equal(first.all("limit")[0].style.left, "calc(100% - 2px)");
  assert.equal(second.all("limit").length, 0);
  for (const words of ["cuda:1", "8.00 GB of 16.0 GB", "4.00 GB", "52 MB", "KV cache", "704 x 384"])
    assert.ok(text(8).includes(words), words);
});

test("a refused plan says so", () => {
  const plan = { refused: "The size is too large.", devices: [] };
  say("executed", { node: "8", output: { text: ["..."], liveavatar_plan: [plan] } });
  assert.equal(text(8), "Cannot be done: The size is too large.");
});

test("the outputs of other nodes are not a plan", () => {
  const before = text(8);
  say("executed", { node: "9", output: { images: [] } });
  say("executed", { node: "8", output: null });
  assert.equal(text(8), before);
});

test("a page that was reloaded shows what was told last, and the video where ComfyUI shows none", async () => {
  const file = { filename: "a.mp4", subfolder: "", type: "temp" };
  const asked = [];
  api.fetchApi = async (path) => {
    asked.push(path);
    const done = { ...AT, phase: "done", elapsed: 8, file, seconds: 4, fps: 12 };
    return { ok: true, json: async () => [done, { ...AT, node: "99" }] };
  };
  const recalled = async (outputs) => {
    open(Object.assign(graph(nodes()), { id: "the id" }));
    app.nodeOutputs = outputs;
    await extension.afterConfigureGraph();
    await new Promise((resolve) => setTimeout(resolve));
    return shown(7).all("live")[0];
  };
  const live = await recalled({});
  assert.deepEqual(asked, ["/liveavatar/runs?workflow=the+id"]);
  assert.ok(text(7).startsWith("4.0 s in 8.0 s, 12 fps"), text(7));
  assert.equal(live.hidden, false);
  assert.equal(live.childNodes[0].tag, "video");
  assert.equal(live.childNodes[0].autoplay, false);
  assert.equal((await recalled({ 7: { images: [{}] } })).hidden, true);
  const before = await recalled({});
  say("liveavatar.progress", { ...AT, preview: { filename: "b.jpg" } });
  assert.equal(before.childNodes[0].tag, "img", "the next run's frames take the place of that video");
  await extension.afterConfigureGraph();
  assert.ok(text(7).includes("block 3/10"), "what is told now is newer than what the server remembers");
});

test("while a run shows its frames, the video of the run before is hidden", () => {
  const [node] = app.rootGraph.nodes.filter((one) => one.id === 7);
  const video = { name: "video-preview" };
  node.widgets.push(video);
  say("liveavatar.progress", AT);
  assert.ok(!video.hidden);
  say("liveavatar.progress", { ...AT, preview: { filename: "a.jpg" } });
  assert.equal(video.hidden, true);
  say("liveavatar.progress", { ...AT, phase: "done" });
  assert.equal(video.hidden, false);
  say("liveavatar.progress", { ...AT, preview: { filename: "a.jpg" } });
  say("execution_error", {});
  assert.equal(video.hidden, false);
});

test("a choice shows what an older graph says by its switch", () => {
  const compile = ["COMBO", { options: ["off", "auto", "on"], replaces: { true: "on", false: "off" } }];
  const required = { threads: ["INT", {}] };
  extension.beforeRegisterNodeDef({}, { name: "LiveAvatarBackend", input: { required, optional: { compile } } });
  extension.beforeRegisterNodeDef({}, { name: "OfAnother", input: {} });
  const shown = (type, value) => {
    const node = { type, widgets: [{ name: "threads", value: 0 }, { name: "compile", value }] };
    extension.loadedGraphNode(node);
    return node.widgets.map((widget) => widget.value);
  };
  assert.deepEqual(shown("LiveAvatarBackend", true), [0, "on"]);
  assert.deepEqual(shown("LiveAvatarBackend", false), [0, "off"]);
  assert.deepEqual(shown("LiveAvatarBackend", "auto"), [0, "auto"]);
  assert.deepEqual(shown("OfAnother", true), [0, true]);
  extension.loadedGraphNode({ type: "LiveAvatarBackend" });
});

test("words follow the locale, and both languages say everything", () => {
  settings["Comfy.Locale"] = "zh-TW";
  say("liveavatar.progress", AT);
  assert.ok(text(7).includes("第 3/10 块 · 第 2/4 步"), text(7));
  say("liveavatar.progress", { ...AT, phase: "encoding the prompt" });
  assert.ok(text(7).includes("正在编码提示词"));
  say("liveavatar.progress", { ...AT, phase: "a phase of a newer server" });
  assert.ok(text(7).includes("a phase of a newer server"));
});

test("nothing is put on the page's global object, and listeners do not grow with nodes", () => {
  let added = 0;
  const { addEventListener } = api;
  api.addEventListener = (...args) => {
    added += 1;
    return addEventListener.apply(api, args);
  };
  const before = Object.keys(globalThis).length;
  open(graph(nodes()));
  api.addEventListener = addEventListener;
  assert.deepEqual([added, Object.keys(globalThis).length], [0, before]);
});
