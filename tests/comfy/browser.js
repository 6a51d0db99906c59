// Runs in the page: window.look reads what is to be seen. Widgets are read off the graph, because a node inside a
// closed subgraph is not on the page.
(() => {
  const { app } = window.comfyAPI.app;
  const root = () => app.rootGraph ?? app.graph; // older frontends know only the second
  const all = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? all(node.subgraph) : [])]);

  const panelOf = (node, { element }) => ({
    id: String(node.id),
    type: node.type,
    text: element.textContent,
    live: !!element.querySelector(".live:not([hidden]) > img"),
  });
  const ours = (node) => (node.widgets ?? []).filter((widget) => widget.name === "liveavatar");
  const panels = () => all(root()).flatMap((node) => ours(node).map((widget) => panelOf(node, widget)));

  // Everything different that a widget showed, in order.
  const kept = new Set();
  setInterval(() => panels().forEach((panel) => kept.add(JSON.stringify(panel))), 30);
  const heard = () => {
    const lines = [...kept].map((line) => JSON.parse(line));
    kept.clear();
    return lines;
  };

  let ended = 0;
  for (const end of ["success", "error", "interrupted"])
    window.comfyAPI.api.api.addEventListener(`execution_${end}`, () => (ended += 1));
  const ends = () => ended;

  // Where nodes are drawn: elements of the page, or rectangles on the canvas.
  const box = (id, { x, y, width, height }) => ({ id: String(id), x, y, width, height });
  const boxes = () => {
    const elements = [...document.querySelectorAll(".lg-node[data-node-id]")];
    if (elements.length) return elements.map((one) => box(one.dataset.nodeId, one.getBoundingClientRect()));
    return root().nodes.map(({ id, boundingRect: [x, y, width, height] }) => box(id, { x, y, width, height }));
  };

  const view = () => ({ scale: app.canvas.ds.scale, wordless: !!app.canvas.low_quality });

  const focus = async (types) => {
    app.canvas.selectItems(root().nodes.filter((node) => types.includes(node.type)));
    await app.extensionManager.command.execute("Comfy.Canvas.FitView");
    app.canvas.deselectAll();
  };

  const visible = (css) => [...document.querySelectorAll(css)].filter((one) => one.checkVisibility());
  const unknown = () =>
    all(root())
      .filter((node) => !node.subgraph && !window.LiteGraph.registered_node_types[node.type])
      .map((node) => node.type)
      .concat(visible("[data-testid=missing-node-card]").map((one) => one.textContent));

  // Videos of temporary files: those that our nodes made, not what Save Video shows.
  const videos = () => [...document.querySelectorAll("video")].filter((one) => one.currentSrc.includes("type=temp"));
  const shown = (elements) => elements.filter((one) => one.checkVisibility());
  const play = () =>
    videos().forEach((video) => {
      Object.assign(video, { muted: true, loop: true });
      video.play();
    });
  const moving = () => videos().filter((one) => one.currentTime > 0.3).map((one) => one.currentSrc);

  window.look = { app, root, all, panels, heard, ends, boxes, view, focus, visible, unknown, videos, shown, play, moving };
})();
