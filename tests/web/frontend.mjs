// Enough of a browser and of ComfyUI's two scripts to run the module under node: elements that remember what was set.

import { register } from "node:module";

class Element {
  constructor(tag) {
    Object.assign(this, { tag, className: "", title: "", hidden: false, attributes: {}, childNodes: [], own: "" });
    this.style = { setProperty: (name, value) => (this.style[name] = value) };
  }

  setAttribute(name, value) {
    this.attributes[name] = value;
  }

  append(...children) {
    this.childNodes.push(...children);
  }

  prepend(...children) {
    this.childNodes.unshift(...children);
  }

  replaceChildren(...children) {
    this.own = "";
    this.childNodes = children;
  }

  get firstChild() {
    return this.childNodes[0];
  }

  get textContent() {
    return this.own + this.childNodes.map((one) => one.textContent ?? String(one)).join("");
  }

  set textContent(text) {
    this.childNodes = [];
    this.own = text;
  }

  // All elements inside with this class.
  all(name) {
    const found = this.childNodes.flatMap((one) => one.all?.(name) ?? []);
    return this.className.split(" ").includes(name) ? [this, ...found] : found;
  }
}

export const settings = { "Comfy.Locale": "en" };
export const extensions = [];
export const api = Object.assign(new EventTarget(), { apiURL: (path) => `/api${path}` });
export const app = {
  rootGraph: null,
  extensionManager: { setting: { get: (name) => settings[name] } },
  registerExtension: (extension) => extensions.push(extension),
};

export const say = (type, detail) => api.dispatchEvent(new CustomEvent(type, { detail }));

globalThis.document = { createElement: (tag) => new Element(tag), head: new Element("head") };
globalThis.liveAvatarTest = { api, app };
const stand = (name) => `data:text/javascript,export const ${name} = globalThis.liveAvatarTest.${name};`;
const hook = `export async function resolve(name, context, next) {
  const script = /scripts\\/(app|api)\\.js$/.exec(name);
  if (!script) return next(name, context);
  const stands = ${JSON.stringify({ app: stand("app"), api: stand("api") })};
  return { url: stands[script[1]], shortCircuit: true };
}`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);

// A graph of nodes {id, type, inputs: {name: [origin id, slot]}, subgraph}; links as the frontend keeps them.
export function graph(nodes, { inputs = [], outputs = [] } = {}) {
  const links = new Map();
  const link = (from) => {
    if (!from) return null;
    links.set(links.size + 1, { origin_id: from[0], origin_slot: from[1] });
    return links.size;
  };
  const made = nodes.map((given) => ({
    comfyClass: given.type,
    ...given,
    widgets: [],
    size: [300, 100],
    computeSize: () => [200, 60],
    inputs: Object.entries(given.inputs ?? {}).map(([name, from]) => ({ name, link: link(from) })),
    addDOMWidget(name, type, element, options) {
      const widget = { name, type, element, options };
      this.widgets.push(widget);
      return widget;
    },
  }));
  return {
    nodes: made,
    inputs: inputs.map((name) => ({ name })),
    outputs: outputs.map((from) => ({ linkIds: [link(from)] })),
    getNodeById: (id) => made.find((one) => one.id === id) ?? null,
    getLink: (id) => links.get(id),
  };
}
