// Shows on the nodes of Live Avatar what a run is doing, and the plan as bars. The graph works the same without it.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

export const LIVE = "LiveAvatarLive"; // its panel is in live.js
const PULLERS = ["LiveAvatarDecode", "LiveAvatarGenerate"];
const SAMPLER = "LiveAvatarSampler";
const PLAN = "LiveAvatarPlan";
const ENDS = ["done", "cancelled", "failed"];
const RUNS = "/liveavatar/runs"; // what nodes told last
const SUBGRAPH_INPUT = "-10"; // the id of the node at the left edge of every subgraph
const MOST_GAPS = 60; // more blocks than this are drawn as one bar
const MOST_HIGH = 420; // a longer plan scrolls

// ---------------------------------------------------------------------------------------------------------- words

const WORDS = {
  en: {
    idle: "Progress appears here while it runs.",
    idleSampler: "Works while the node after it runs.",
    idlePlan: "Run the graph to see the plan.",
    block: (at, of) => `block ${at}/${of}`,
    step: (at, of) => `step ${at}/${of}`,
    item: (n) => `video ${n}`,
    ready: (now, all) => (all ? `${now} of ${all} s ready` : `${now} s ready`),
    fps: (n) => `${n} fps`,
    left: (t) => `${t} left`,
    done: (made, took, fps) => [`${made} s${took ? ` in ${took}` : ""}`, fps].filter(Boolean).join(", "),
    cancelled: (ready) => (ready ? `Cancelled after ${ready} s of video.` : "Cancelled."),
    continues: (state) => ` Load State: ${state} continues it.`,
    failed: "Failed. The error says why.",
    busy: "busy",
    waiting: "waiting",
    watch: "Play what is ready",
    refused: "Cannot be done:",
    of: (used, all) => (all ? `${used} of ${all}` : used),
    clock: (h, m, s) => (h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`),
  },
  zh: {
    idle: "运行时在此显示进度。",
    idleSampler: "在后面的节点运行时工作。",
    idlePlan: "运行后在此显示方案。",
    block: (at, of) => `第 ${at}/${of} 块`,
    step: (at, of) => `第 ${at}/${of} 步`,
    item: (n) => `第 ${n} 个视频`,
    ready: (now, all) => (all ? `已完成 ${now} / ${all} 秒` : `已完成 ${now} 秒`),
    fps: (n) => `${n} 帧/秒`,
    left: (t) => `剩余 ${t}`,
    done: (made, took, fps) => [`${made} 秒视频${took ? `，用时 ${took}` : ""}`, fps].filter(Boolean).join("，"),
    cancelled: (ready) => (ready ? `已取消，已完成 ${ready} 秒视频。` : "已取消。"),
    continues: (state) => `在“载入状态”中选择 ${state} 可继续。`,
    failed: "失败，原因见错误信息。",
    busy: "忙",
    waiting: "等待",
    watch: "播放已完成的部分",
    refused: "无法完成：",
    of: (used, all) => (all ? `${used} / ${all}` : used),
    clock: (h, m, s) => (h ? `${h} 小时 ${m} 分` : m ? `${m} 分 ${s} 秒` : `${s} 秒`),
    // What the server names in English.
    talking: "正在对话",
    "encoding the portrait": "正在编码人像",
    "encoding the prompt": "正在编码提示词",
    "encoding the voice": "正在编码语音",
    "loading the VAE": "正在加载 VAE",
    "loading the network": "正在加载模型",
    generating: "正在生成",
    weights: "权重",
    "KV cache": "KV 缓存",
    sink: "参考帧",
    text: "文本",
    workspace: "工作区",
    conditions: "条件",
    "audio encoder": "音频编码器",
    slots: "交换槽",
    contexts: "驱动上下文",
  },
};

export function locale() {
  let chosen;
  try {
    chosen = app.extensionManager?.setting?.get("Comfy.Locale") ?? app.ui?.settings?.getSettingValue("Comfy.Locale");
  } catch {
    // An older frontend may not know the setting.
  }
  return String(chosen ?? navigator.language ?? "en");
}

const words = () => (locale().startsWith("zh") ? WORDS.zh : WORDS.en);

const named = (say, name) => (typeof say[name] === "string" ? say[name] : name);
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const tenth = (value) => (number(value) ?? 0).toFixed(1);
const size = (n) => (n < 1e9 ? `${Math.round(n / 1e6)} MB` : `${(n / 1e9).toFixed(n < 1e10 ? 2 : 1)} GB`);

export function duration(say, seconds) {
  if (seconds < 10) return say.clock(0, 0, seconds.toFixed(1));
  const whole = Math.round(seconds);
  return say.clock(Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60);
}

// The parts of the line under the bar, and the line that remains when it is over.
export function lines(say, at, took) {
  const fps = number(at.fps) === null ? "" : say.fps(at.fps < 9.95 ? at.fps.toFixed(1) : Math.round(at.fps));
  const made = tenth(at.seconds || at.seconds_ready);
  if (at.phase === "done") return { summary: say.done(made, took && duration(say, took), fps) };
  if (at.phase === "cancelled") {
    const ended = say.cancelled(at.seconds_ready ? tenth(at.seconds_ready) : "");
    return { summary: at.state ? ended + say.continues(at.state) : ended };
  }
  if (at.phase === "failed") return { summary: say.failed };
  const blocks = at.blocks ? [say.block(at.block, at.blocks), at.steps ? say.step(at.step, at.steps) : ""] : [];
  const doing = blocks.length && at.phase === "generating" ? blocks.filter(Boolean).join(" · ") : named(say, at.phase ?? "");
  const item = number(at.item) > 1 ? say.item(at.item) : "";
  return {
    left: [item, doing].filter(Boolean).join(" · "),
    ready: at.seconds ? say.ready(tenth(at.seconds_ready), tenth(at.seconds)) : "",
    fps,
    eta: number(at.eta) === null ? "" : say.left(duration(say, at.eta)),
  };
}

// Where the bar stands, in percent: what is written, the block in work, and how far its steps are.
export function marks(at) {
  const share = (part, whole) => (whole > 0 ? Math.min(100, Math.max(0, (100 * part) / whole)) : 0);
  const blocks = number(at.blocks) ?? 0;
  return {
    ready: at.phase === "done" ? 100 : share(at.frames ?? 0, at.total_frames ?? 0),
    from: blocks ? share((at.block ?? 1) - 1, blocks) : 0,
    wide: blocks && at.block ? 100 / blocks : 0,
    inside: share(at.step ?? 0, at.steps ?? 0),
    gaps: blocks > 1 && blocks <= MOST_GAPS ? blocks : 0,
  };
}

// ---------------------------------------------------------------------------------------------------------- graph

const kind = (node) => node?.comfyClass ?? node?.type;
const nodeOf = (graph, id) => graph?.getNodeById?.(id) ?? graph?.getNodeById?.(Number(id)) ?? null;
const linkOf = (graph, id) => graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id] ?? null;

// "3:12" is node 12 inside the subgraph that node 3 of the root stands for. The way there comes along, because a
// subgraph does not know which of its instances runs. Null where the graph has no such node (another tab is open).
export function locate(root, executionId) {
  const parts = String(executionId ?? "").split(":");
  const hosts = [];
  let graph = root;
  for (const part of parts.slice(0, -1)) {
    const host = nodeOf(graph, part);
    if (!host?.subgraph) return null;
    hosts.push({ graph, host });
    graph = host.subgraph;
  }
  const node = nodeOf(graph, parts.at(-1));
  return node && { node, graph, hosts };
}

// The node whose output reaches an input, through reroutes and over the edges of subgraphs.
export function sourceOf(place, inputName) {
  let { graph, hosts } = place;
  let input = place.node.inputs?.find((one) => one.name === inputName);
  for (let hops = 0; input && hops < 100; hops += 1) {
    const link = linkOf(graph, input.link);
    if (!link) return null;
    if (String(link.origin_id) === SUBGRAPH_INPUT) {
      const outside = hosts.at(-1);
      const slot = graph.inputs?.[link.origin_slot];
      if (!outside || !slot) return null;
      ({ graph } = outside);
      hosts = hosts.slice(0, -1);
      input = outside.host.inputs?.find((one) => one.name === slot.name);
      continue;
    }
    const node = nodeOf(graph, link.origin_id);
    if (node?.subgraph) {
      hosts = [...hosts, { graph, host: node }];
      graph = node.subgraph;
      input = { link: graph.outputs?.[link.origin_slot]?.linkIds?.[0] };
    } else if (kind(node) === "Reroute") {
      input = node.inputs?.[0];
    } else {
      return node;
    }
  }
  return null;
}

// The nodes that show a message: the one that pulls, and the sampler it pulls from.
export function watchers(root, executionId) {
  const place = locate(root, executionId);
  if (!place || ![...PULLERS, LIVE].includes(kind(place.node))) return [];
  const source = sourceOf(place, "latents");
  return kind(source) === SAMPLER ? [place.node, source] : [place.node];
}

// --------------------------------------------------------------------------------------------------------- panels

const STYLE = `
.liveavatar { box-sizing: border-box; width: 100%; color: var(--input-text, #ddd); font: 11px/15px sans-serif;
  --la-bar: var(--p-primary-color, #60a5fa); pointer-events: auto; user-select: none; }
.liveavatar.run { display: flex; flex-direction: column; gap: 4px; min-height: 46px; height: 100%; overflow: hidden; }
.liveavatar .live { position: relative; flex: 1 1 180px; min-height: 180px; }
.liveavatar .live:not([title=""]) { cursor: pointer; }
.liveavatar .live > * { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.liveavatar [hidden] { display: none !important; }
.lg-node:has(.liveavatar .live:not([hidden])) :is(.video-preview, [data-testid^="video-preview"]) { display: none; }
.liveavatar .bar { position: relative; flex: none; height: 8px; border-radius: 4px; overflow: hidden;
  background: color-mix(in srgb, var(--input-text, #ddd) 18%, transparent); transition: height .6s, opacity .6s; }
.liveavatar .bar > * { position: absolute; top: 0; bottom: 0; left: 0; }
.liveavatar .now { background: color-mix(in srgb, var(--la-bar) 35%, transparent); }
.liveavatar .now > i { position: absolute; inset: 0 auto 0 0;
  background: color-mix(in srgb, var(--la-bar) 70%, transparent); }
.liveavatar .ready { background: var(--la-bar); transition: width .25s; }
.liveavatar .gaps { right: 0; --la-each: calc(100% / var(--la-blocks)); background: repeating-linear-gradient(90deg,
  transparent 0 calc(var(--la-each) - 1px), var(--comfy-input-bg, #222) calc(var(--la-each) - 1px) var(--la-each)); }
.liveavatar .line { display: flex; justify-content: space-between; gap: 8px; min-height: 15px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.liveavatar .line > * { overflow: hidden; text-overflow: ellipsis; }
.liveavatar .faint { color: var(--descrip-text, #999); }
.liveavatar .dots { display: flex; gap: 4px; align-items: center; overflow: visible; }
.liveavatar .dots i { width: 7px; height: 7px; border-radius: 50%; border: 1px solid var(--la-bar); }
.liveavatar .dots i.busy { background: var(--la-bar); }
.liveavatar.over .bar { height: 2px; opacity: .5; }
.liveavatar.idle .bar { height: 2px; opacity: .3; }
.liveavatar.failed .summary { color: var(--error-text, #ff4444); }
.liveavatar.plan { display: flex; flex-direction: column; gap: 6px; height: 100%; min-height: 120px; overflow: auto;
  user-select: text; }
.liveavatar.plan .device { display: grid; grid-template-columns: 1fr auto; gap: 1px 8px; }
.liveavatar.plan .bar { grid-column: 1 / -1; height: 12px; display: flex; }
.liveavatar.plan .bar > * { position: static; flex: none; min-width: 1px; }
.liveavatar.plan .bar > .limit { position: absolute; width: 2px; background: var(--error-text, #ff4444); }
.liveavatar.plan .key { display: flex; flex-wrap: wrap; gap: 1px 10px; }
.liveavatar.plan .key i { display: inline-block; width: 8px; height: 8px; border-radius: 2px; margin-right: 4px; }
.liveavatar.plan .text { flex: none; font: 10px/14px monospace; white-space: pre; }
.liveavatar.plan .text.refused { font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
.liveavatar.plan .refused { color: var(--error-text, #ff4444); }
@media (prefers-reduced-motion: reduce) { .liveavatar * { transition: none !important; } }`;

const COLOURS = ["blue", "teal", "amber", "purple", "pink", "lime", "orange", "cyan"];
const PLAIN = ["#60a5fa", "#2dd4bf", "#fbbf24", "#c084fc", "#f472b6", "#a3e635", "#fb923c", "#22d3ee"];
const colour = (index) => `var(--p-${COLOURS[index % 8]}-400, ${PLAIN[index % 8]})`;

export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// A file in ComfyUI's folders; the number of frames makes the browser ask again when there are more.
function view({ filename, subfolder = "", type = "temp", frames = 0 }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, ready: frames })}`);
}

// What one node shows of a run: the bar and its words, and the latest frame where the node is the one that pulls. The
// finished video is shown by ComfyUI itself.
export class RunPanel {
  constructor(idle, pulls = false) {
    this.pulls = pulls;
    this.live = make("div", "live");
    this.live.hidden = true;
    this.live.onclick = () => this.watch();
    this.now = make("div", "now", make("i"));
    this.ready = make("div", "ready");
    this.gaps = make("div", "gaps");
    this.bar = make("div", "bar", this.now, this.ready, this.gaps);
    this.bar.setAttribute("role", "progressbar");
    this.bar.setAttribute("aria-label", "Live Avatar");
    this.left = make("span", "summary faint", idle);
    this.right = make("span", "faint");
    this.dots = make("span", "dots");
    this.below = make("div", "line", make("span", "faint"), this.dots);
    this.element = make("div", "liveavatar run idle", this.bar, make("div", "line", this.left, this.right), this.below);
    this.element.append(this.live);
    this.began = null;
    this.last = null;
  }

  get height() {
    return this.live.hidden ? 46 : 230;
  }

  get running() {
    return this.last !== null && !ENDS.includes(this.last.phase);
  }

  show(at, now = performance.now()) {
    if (!this.running) {
      this.began = now;
      this.look(null); // a film of an earlier run would hide the frames of this one
    }
    const over = ENDS.includes(at.phase);
    const watched = this.running ? (now - this.began) / 1000 : 0;
    const took = number(at.elapsed) ?? watched; // the server's clock: another page that comes later shows the same
    if (over && this.running) at = { ...this.last, ...at }; // the last word may leave out the numbers before it
    this.last = at;
    const say = lines(words(), at, took);
    const { ready, from, wide, inside, gaps } = marks(at);
    this.element.className = `liveavatar run ${over ? `over ${at.phase}` : ""}`;
    this.bar.setAttribute("aria-valuenow", String(Math.round(100 * (at.share ?? 0))));
    this.ready.style.width = `${ready}%`;
    this.now.style.left = `${from}%`;
    this.now.style.width = `${over ? 0 : wide}%`;
    this.now.firstChild.style.width = `${inside}%`;
    this.gaps.style.setProperty("--la-blocks", gaps || 1);
    this.gaps.hidden = !gaps || over;
    this.left.textContent = say.summary ?? say.left;
    this.left.className = "summary";
    this.right.textContent = say.eta ?? "";
    this.below.hidden = over;
    this.below.firstChild.textContent = [say.ready, say.fps].filter(Boolean).join(" · ");
    this.dots.replaceChildren(...(over ? [] : (at.devices ?? [])).map((device) => this.dot(device)));
    if (over) this.look(null);
    else if (this.pulls && at.preview) this.look(view(at.preview));
  }

  // The latest frame, unless a film of what is ready is being watched; null puts both away.
  look(picture) {
    this.live.hidden = picture === null;
    if (picture === null) this.film = null;
    if (this.film) return;
    this.picture ??= make("img");
    if (picture) this.picture.src = picture;
    this.live.title = this.last?.file ? words().watch : "";
    this.live.replaceChildren(...(picture ? [this.picture] : []));
  }

  // A run that was over before this page came: ComfyUI shows its video no more.
  replay() {
    this.watch(false);
    this.live.hidden = !this.film;
  }

  // The file grows while it is written: play as much of it as there is now.
  watch(autoplay = true) {
    if (!this.last?.file || this.film) return;
    const src = view({ ...this.last.file, frames: this.last.frames });
    this.film = Object.assign(make("video"), { controls: true, autoplay, src });
    const back = () => {
      this.film = null;
      if (!this.running) this.look(null);
      else if (!this.live.hidden) this.live.replaceChildren(this.picture);
    };
    Object.assign(this.film, { onended: autoplay ? back : null, onerror: back });
    this.live.replaceChildren(this.film);
  }

  dot({ name, busy }) {
    const dot = make("i", busy ? "busy" : "");
    dot.title = `${name}: ${busy ? words().busy : words().waiting}`;
    return dot;
  }

  // ComfyUI said that the run is over, and the server's own last word did not come.
  end(phase) {
    if (this.running) this.show({ ...this.last, phase });
  }
}

// What the Plan node shows: a bar per device, what its colours mean, and the report.
export class PlanPanel {
  constructor(idle) {
    this.element = make("div", "liveavatar plan", make("span", "faint", idle));
    this.height = 150;
  }

  show(plan, report) {
    const say = words();
    const devices = plan?.devices ?? [];
    const scale = Math.max(1, ...devices.flatMap((one) => [one.total ?? 0, one.capacity ?? 0]));
    const names = [...new Set(devices.flatMap((one) => one.parts.map((part) => part.name)))];
    const key = names.map((name, index) => {
      const patch = make("i");
      patch.style.background = colour(index);
      return make("span", "", patch, named(say, name));
    });
    const children = devices.map((device) => this.device(say, device, scale, names));
    if (names.length) children.push(make("div", "key faint", ...key));
    if (plan?.refused) children.push(make("div", "text refused", `${say.refused} ${plan.refused}`));
    else if (report) children.push(make("div", "text faint", report));
    this.element.replaceChildren(...children);
    this.element.style.height = "auto";
    this.height = Math.min(MOST_HIGH, Math.max(this.height, this.element.scrollHeight || 0));
    this.element.style.height = "";
  }

  device(say, { name, parts, total, capacity }, scale, names) {
    const bar = make("div", "bar");
    for (const part of parts) {
      const piece = make("span");
      piece.style.width = `${(100 * part.bytes) / scale}%`;
      piece.style.background = colour(names.indexOf(part.name));
      piece.title = `${named(say, part.name)}: ${size(part.bytes)}`;
      bar.append(piece);
    }
    if (capacity) {
      const limit = make("span", "limit");
      limit.style.left = `calc(${(100 * capacity) / scale}% - 2px)`;
      bar.append(limit);
    }
    const used = say.of(size(total), capacity && size(capacity));
    const over = capacity && total > capacity;
    return make("div", "device", make("span", "", name), make("span", over ? "refused" : "faint", used), bar);
  }
}

// ---------------------------------------------------------------------------------------------------- older graphs

const replaced = {}; // kind of node -> widget -> what older graphs say there -> what it means now

function remember(definition) {
  for (const inputs of Object.values(definition.input ?? {}))
    for (const [name, spec] of Object.entries(inputs ?? {}))
      if (spec?.[1]?.replaces) (replaced[definition.name] ??= {})[name] = spec[1].replaces;
}

function renew(node) {
  for (const widget of node.widgets ?? []) {
    const now = replaced[kind(node)]?.[widget.name]?.[String(widget.value)];
    if (now !== undefined) widget.value = now;
  }
}

// --------------------------------------------------------------------------------------------------------- wiring

const panels = new WeakMap(); // node -> its panel; gone with the node
const running = new Set(); // nodes of a run that is not over

function attach(node) {
  const say = words();
  const name = kind(node);
  let panel;
  if (PULLERS.includes(name)) panel = new RunPanel(say.idle, true);
  else if (name === SAMPLER) panel = new RunPanel(say.idleSampler);
  else if (name === PLAN) panel = new PlanPanel(say.idlePlan);
  else return;
  mount(node, panel);
}

// Puts a panel on a node, at its end.
export function mount(node, panel) {
  const margin = 6;
  const high = () => panel.height + 2 * margin;
  const bounded = panel instanceof RunPanel && { getMaxHeight: () => (panel.live.hidden ? high() : undefined) };
  const widget = node.addDOMWidget("liveavatar", "liveavatar", panel.element, {
    serialize: false, // not in the prompt
    hideOnZoom: false,
    margin,
    getMinHeight: high,
    ...bounded,
  });
  widget.serialize = false; // not in the workflow
  panels.set(node, panel);
  const onRemoved = node.onRemoved;
  node.onRemoved = function (...args) {
    running.delete(node);
    return onRemoved?.apply(this, args);
  };
}

// Room for what came; a node that is large enough stays as the user made it.
export function grow(node) {
  const high = node.computeSize()[1];
  if (node.size[1] < high) node.setSize([node.size[0], high]);
}

// While a run shows its own frames, the video of the run before would stand below them. Of the classic renderer it is a
// widget; the other one's is hidden by STYLE.
export function hideOldVideo(node, hidden) {
  const video = node.widgets?.find((widget) => widget.name === "video-preview");
  if (video && !!video.hidden !== hidden) video.hidden = hidden;
}

function tell(node, message) {
  const panel = panels.get(node);
  if (!panel) return;
  const before = panel.height;
  panel.show(message);
  hideOldVideo(node, panel.running && !panel.live.hidden);
  if (panel.height > before) grow(node);
  if (panel.running) running.add(node);
  else running.delete(node);
}

function onProgress({ detail }) {
  if (!detail?.node) return;
  for (const node of watchers(app.rootGraph ?? app.graph, detail.node)) tell(node, detail);
}

const hasOutput = ({ id, graph }) =>
  !!app.nodeOutputs?.[!graph || graph === (app.rootGraph ?? app.graph) ? id : `${graph.id}:${id}`];

// A page that was reloaded, or a tab that was opened again, has new nodes: they show what was told last.
async function recall() {
  const root = app.rootGraph ?? app.graph;
  if (!root?.id) return;
  const answer = await api.fetchApi(`${RUNS}?${new URLSearchParams({ workflow: root.id })}`);
  if (!answer.ok || root !== (app.rootGraph ?? app.graph)) return;
  for (const message of await answer.json())
    for (const node of watchers(root, message.node)) {
      const panel = panels.get(node);
      if (!panel || panel.last) continue;
      tell(node, message);
      if (panel.pulls && message.phase === "done" && !hasOutput(node)) panel.replay();
      grow(node);
    }
}

function onExecuted({ detail }) {
  const plan = detail?.output?.liveavatar_plan?.[0];
  if (!plan) return;
  const node = locate(app.rootGraph ?? app.graph, detail.display_node ?? detail.node)?.node;
  if (kind(node) !== PLAN || !panels.has(node)) return;
  panels.get(node).show(plan, detail.output.text?.[0]);
  grow(node);
}

function onEnd(phase) {
  return () => {
    for (const node of running) {
      panels.get(node).end(phase);
      hideOldVideo(node, false);
    }
    running.clear();
  };
}

app.registerExtension({
  name: "LiveAvatar.Panel",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    api.addEventListener("liveavatar.progress", onProgress);
    api.addEventListener("executed", onExecuted);
    api.addEventListener("execution_success", onEnd("done"));
    api.addEventListener("execution_interrupted", onEnd("cancelled"));
    api.addEventListener("execution_error", onEnd("failed"));
  },
  beforeRegisterNodeDef: (_, definition) => remember(definition),
  loadedGraphNode: renew,
  nodeCreated: attach,
  afterConfigureGraph: () => void recall().catch((error) => console.debug("Live Avatar:", error)),
});
