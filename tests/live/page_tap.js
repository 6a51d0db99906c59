// What `page_figures.py` puts into the page before its own scripts: it notes what the microphone gave, and when, and each
// picture that the video element showed, and when. Times are those of performance.now().
(() => {
  const { left, top, side } = window.mouthBox;
  const tap = (window.pageTap = { rate: 0, sound: [], heard: [], shown: [], pictures: [], delays: [], told: [], stalls: 0 });

  const worklet = `registerProcessor("page-tap", class extends AudioWorkletProcessor {
    process(inputs) {
      if (inputs[0][0]) this.port.postMessage([currentFrame, inputs[0][0].slice()]);
      return true;
    }
  });`;

  async function listen(stream) {
    const context = new AudioContext();
    await context.audioWorklet.addModule(URL.createObjectURL(new Blob([worklet], { type: "text/javascript" })));
    const node = new AudioWorkletNode(context, "page-tap");
    tap.rate = context.sampleRate;
    node.port.onmessage = ({ data: [frame, samples] }) => {
      tap.heard.push([frame, performance.now()]);
      for (const value of samples) tap.sound.push(Math.round(32767 * Math.max(-1, Math.min(1, value))));
    };
    context.createMediaStreamSource(stream).connect(node);
  }

  const devices = navigator.mediaDevices, getUserMedia = devices.getUserMedia.bind(devices);
  devices.getUserMedia = async (wish) => {
    const stream = await getUserMedia(wish);
    await listen(stream);
    return stream;
  };

  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d", { willReadFrequently: true });

  function look(video) {
    video.requestVideoFrameCallback((now, { expectedDisplayTime }) => {
      context.drawImage(video, left, top, side, side, 0, 0, side, side);
      tap.pictures.push(context.getImageData(0, 0, side, side).data);
      tap.shown.push(expectedDisplayTime);
      look(video);
    });
  }

  // As fast as a user could be: Start is pressed when it can be.
  function start() {
    const button = document.querySelector("#start:not([disabled])");
    if (button) button.click();
    else setTimeout(start, 5);
  }

  // Press a button; when.
  tap.press = (id) => {
    const now = performance.now();
    document.getElementById(id).click();
    return now;
  };

  // What the server says of the talk.
  window.WebSocket = class extends WebSocket {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({ data }) => {
        const message = typeof data === "string" ? JSON.parse(data) : {};
        if (message.type === "stats") tap.told.push(message);
      });
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    const video = document.getElementById("video");
    look(video);
    video.addEventListener("waiting", () => (tap.stalls += !video.seeking && video.readyState < 3));
    setInterval(() => tap.delays.push(parseFloat(document.getElementById("delay").textContent)), 1000);
    if (window.startAtOnce) start();
  });

  tap.forget = () => {
    for (const name of ["shown", "pictures", "delays", "told"]) tap[name].length = 0;
  };

  // Base64 of all pictures, or of the sound.
  tap.bytes = (name) => {
    const parts = name === "sound" ? [new Int16Array(tap.sound)] : tap.pictures;
    return new Blob(parts).arrayBuffer().then((all) => new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result.split(",")[1]);
      reader.readAsDataURL(new Blob([all]));
    }));
  };
})();
