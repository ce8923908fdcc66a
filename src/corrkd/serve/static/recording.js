"use strict";

// A visitor's recording, opened or made here, and how the page shows it. `app.js` requests its predictions.
const recording = {
  blob: null, // what is sent; null: the transcript alone
  name: "",
  limits: null, // of the service: bytes and seconds
  answer: null, // of the service, once the recording was read
  visible: {}, // which frames the model is shown, by modality
  moment: 0, // seconds, where the browser cannot play the file
  request: null, // the request under way
  recorder: null,
  ticking: 0,
};
const KINDS = ["video/webm;codecs=vp8,opus", "video/mp4", "audio/webm", "audio/mp4"];
const SVG = "http://www.w3.org/2000/svg";
const QUIETEST = -70; // dBFS, below which sound is missing

function acceptRecordings(limits) {
  recording.limits = limits;
  at("recording").hidden = !limits;
  if (!limits) return;
  const canRecord = Boolean(navigator.mediaDevices && window.MediaRecorder);
  at("record").hidden = !canRecord;
  at("no-record").hidden = canRecord;
  at("recording-limits").textContent = `Up to ${Math.floor(limits.seconds).toLocaleString("en")} seconds and ${(limits.bytes / 1e6).toLocaleString("en")} MB.`;
}

// --------------------------------------------------------------------------------------------- from the visitor

async function chooseRecording(file) {
  if (!file) return;
  at("problem").hidden = true;
  if (/\.(txt|vtt|srt)$/i.test(file.name)) {
    at("transcript").value = await file.text();
    readyToPredict();
    return;
  }
  keepRecording(file, file.name);
  predictRecording();
}

function keepRecording(blob, name) {
  recording.blob = blob;
  recording.name = name;
  recording.answer = null;
  const video = at("video");
  video.srcObject = null;
  if (video.src) URL.revokeObjectURL(video.src);
  video.src = URL.createObjectURL(blob);
  video.muted = false;
  video.controls = true;
  showScreen();
  at("chosen").textContent = name;
  readyToPredict();
}

function readyToPredict() {
  at("predict-recording").disabled = !(recording.blob || at("transcript").value.trim()) || Boolean(recording.recorder);
}

async function toggleRecording() {
  if (recording.recorder) {
    recording.recorder.stop();
    return;
  }
  at("problem").hidden = true;
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: true }).catch((error) => {
      if (error.name !== "NotFoundError") throw error;
      return navigator.mediaDevices.getUserMedia({ audio: true }); // a machine without a camera
    });
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    fail(new Error(denied ? "The browser may not use camera and microphone; allow it, or choose a file." : `Camera and microphone cannot be used: ${error.message}`));
    return;
  }
  startRecorder(stream);
}

function startRecorder(stream) {
  const kind = KINDS.find((k) => MediaRecorder.isTypeSupported(k) && (stream.getVideoTracks().length || k.startsWith("audio")));
  const recorder = new MediaRecorder(stream, kind ? { mimeType: kind } : {});
  const parts = [];
  const began = performance.now();
  recording.recorder = recorder;
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    clearInterval(recording.ticking);
    for (const track of stream.getTracks()) track.stop(); // the camera's light goes off
    recording.recorder = null;
    showRecording(false);
    const type = recorder.mimeType.split(";")[0];
    keepRecording(new Blob(parts, { type }), type.endsWith("mp4") ? "recording.mp4" : "recording.webm");
    predictRecording();
  });
  const video = at("video");
  leaveRecording();
  video.removeAttribute("src");
  video.srcObject = stream;
  video.muted = true;
  video.controls = false;
  video.play();
  at("stage").hidden = at("screen").hidden = false;
  at("screen").classList.toggle("sound", !stream.getVideoTracks().length);
  recorder.start(1000);
  showRecording(true);
  recording.ticking = setInterval(() => {
    const seconds = (performance.now() - began) / 1000;
    at("recording-time").textContent = clock(seconds);
    if (seconds >= recording.limits.seconds - 1 && recorder.state === "recording") recorder.stop();
  }, 200);
}

function showRecording(on) {
  at("record").textContent = on ? "Stop" : "Record";
  at("record").classList.toggle("stop", on);
  at("recording-sign").hidden = !on;
  at("recording-time").textContent = clock(0);
  at("screen").classList.toggle("live", on);
  readyToPredict();
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

async function predictRecording() {
  if (recording.request) recording.request.abort();
  const request = recording.request = new AbortController();
  const form = new FormData();
  if (recording.blob) form.append("file", recording.blob, recording.name);
  form.append("text", at("transcript").value);
  at("problem").hidden = true;
  clear();
  at("said").textContent = "Reading the recording …";
  at("stage").hidden = false;
  at("cancel-recording").hidden = false;
  at("stage").setAttribute("aria-busy", "true");
  try {
    recording.answer = await ask("v1/predict/media?details=true", { method: "POST", body: form, signal: request.signal });
    showReadRecording();
    openSample({ name: recording.blob ? recording.name : "Your text", body: bytesOf(recording.answer.details.sample), kind: "application/x-npz", isRecording: true });
  } catch (error) {
    if (request === recording.request) at("said").replaceChildren();
    fail(error);
  } finally {
    if (request === recording.request) {
      recording.request = null;
      at("cancel-recording").hidden = true;
      at("stage").removeAttribute("aria-busy");
      if (!recording.answer && !recording.blob) at("stage").hidden = true;
    }
  }
}

function bytesOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]);
}

// Another sample is shown.
function leaveRecording() {
  at("video").pause();
  at("stage").hidden = true;
  at("read").hidden = true;
  document.body.classList.remove("with-recording");
}

// -------------------------------------------------------------------------------------------- what is shown of it

function showReadRecording() {
  const { answer } = recording;
  const words = answer.details.words.map((word) => element("span", {}, word.text));
  at("words").replaceChildren(...words.flatMap((word) => [word, " "]));
  at("words").hidden = !words.length;
  at("moment").max = answer.seconds;
  at("moment").hidden = !answer.seconds;
  showScreen();
  at("face-choice").hidden = !answer.details.faces.some(Boolean);
  at("stage").hidden = at("read").hidden = false;
  document.body.classList.add("with-recording");
  recording.moment = 0;
  moveTo(0);
}

// The file's picture; the outline alone where the browser cannot show it; of sound the controls.
function showScreen() {
  const [video, screen, { answer }] = [at("video"), at("screen"), recording];
  const drawn = !video.videoWidth && answer && answer.details.aspect;
  screen.classList.toggle("sound", !video.videoWidth && !drawn);
  screen.classList.toggle("drawn", Boolean(drawn));
  screen.style.aspectRatio = drawn ? answer.details.aspect : "";
  screen.hidden = !recording.blob || (Boolean(video.error) && !drawn);
  at("unplayable").hidden = !recording.blob || (!video.error && !drawn);
}

// Called with each prediction of the recording: one strip a modality, from the first to the last second.
function showTimeline(visible) {
  recording.visible = visible;
  at("timeline").replaceChildren(...modalities.flatMap((m) => [
    element("span", { className: "name" }, m),
    element("div", { className: "lane" }, timelineStrip(m)),
    element("p", { className: "why" }, why(m)),
  ]));
  moveTo(now());
}

function timelineStrip(m) {
  const { answer } = recording;
  const strip = document.createElementNS(SVG, "svg");
  const seen = recording.visible[m] || Array(answer.frames[m] || 1).fill(false);
  const spans = seen.map((_, index) => spanOf(m, index, seen.length));
  const end = Math.max(...spans.map(([, last]) => last), 1e-6);
  strip.setAttribute("class", "strip");
  strip.setAttribute("viewBox", `0 0 ${end} 1`);
  strip.setAttribute("preserveAspectRatio", "none");
  strip.setAttribute("role", "img");
  strip.setAttribute("aria-label", `${m}: ${why(m)}`);
  seen.forEach((there, index) => {
    const [first, last] = spans[index];
    const frame = document.createElementNS(SVG, "rect");
    const height = there ? heightOf(m, index) : 0.22;
    const gap = m in recording.visible && answer.details.by_word.includes(m) ? 0.08 * (last - first) : 0;
    const place = { x: first + gap, y: 1 - height, width: Math.max(0, last - first - 2 * gap), height, class: there ? "there" : "missing" };
    for (const [key, value] of Object.entries(place)) frame.setAttribute(key, value);
    strip.append(frame);
  });
  return strip;
}

// Seconds of a frame; words without times share what there is alike.
function spanOf(m, index, count) {
  const { details, seconds } = recording.answer;
  const word = details.by_word.includes(m) ? details.words[index] : null;
  if (word && word.start !== undefined) return [word.start, Math.max(word.end, word.start)];
  if (details.by_word.includes(m) || !seconds || count === 1) return [index / count * (seconds || 1), (index + 1) / count * (seconds || 1)];
  return [index * details.step, Math.min((index + 1) * details.step, seconds)];
}

// Sound is drawn as high as it is loud.
function heightOf(m, index) {
  const { details } = recording.answer;
  if (m !== "audio" || details.by_word.includes(m) || !details.loudness.length) return 1;
  return Math.min(1, Math.max(0.3, 1 - details.loudness[index] / QUIETEST));
}

function why(m) {
  const total = recording.answer.frames[m] || 0;
  const reasons = Object.entries(recording.answer.missing[m] || {});
  const text = reasons.map(([reason, count]) => (count === total ? reason : `${reason} in ${count} of ${total} frames`)).join(", ");
  if (state.off.has(m)) return `switched off${text ? ` (${text})` : ""}`;
  const lost = (recording.visible[m] || []).filter((there) => !there).length;
  if (!text) return lost ? `${lost} of ${total} frames dropped` : "all visible";
  return state.missing ? `${text}; others dropped` : text;
}

// ------------------------------------------------------------------------------------------------- while it plays

const plays = () => Boolean(recording.blob) && !at("video").error;
const now = () => (plays() ? at("video").currentTime : recording.moment);

function seek(seconds) {
  recording.moment = seconds;
  if (plays()) at("video").currentTime = seconds;
  moveTo(seconds);
}

function moveTo(seconds) {
  const { answer } = recording;
  if (!answer) return;
  at("moment").value = seconds;
  at("moment").setAttribute("aria-valuetext", `${seconds.toFixed(1)} seconds`);
  at("lanes").style.setProperty("--at", answer.seconds ? `${(100 * seconds) / answer.seconds}%` : "-1%");
  answer.details.words.forEach((word, index) => {
    const spoken = word.start !== undefined && word.start <= seconds && seconds < word.end;
    const shown = at("words").children[index];
    if (spoken && !shown.classList.contains("now")) at("words").scrollTop = shown.offsetTop - at("words").offsetTop - 24;
    shown.classList.toggle("now", spoken);
  });
  drawFace(answer.details, Math.floor(seconds / answer.details.step + 1e-6));
}

function drawFace(details, index) {
  const canvas = at("overlay");
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = canvas.clientHeight * devicePixelRatio;
  const points = details.faces[index];
  if (!points || !at("draw-face").checked) return;
  const pen = canvas.getContext("2d");
  let start = 0;
  const lines = Object.values(details.outline).map((count) => {
    const line = new Path2D();
    for (let point = start; point < start + count; point += 1) {
      const [x, y] = [(points[2 * point] / details.scale) * canvas.width, (points[2 * point + 1] / details.scale) * canvas.height];
      if (point === start) line.moveTo(x, y);
      else line.lineTo(x, y);
    }
    start += count;
    return line;
  });
  // Light on dark, so that it is seen on any skin and any light.
  for (const [colour, width] of [["rgba(0, 0, 0, .55)", 3.5], ["#ffffff", 1.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * devicePixelRatio;
    for (const line of lines) pen.stroke(line);
  }
}

function follow() {
  moveTo(now());
  if (!at("video").paused) requestAnimationFrame(follow);
}

function connectRecording() {
  at("clip-file").addEventListener("change", () => {
    chooseRecording(at("clip-file").files[0]);
    at("clip-file").value = "";
  });
  at("record").addEventListener("click", toggleRecording);
  at("transcript").addEventListener("input", readyToPredict);
  at("predict-recording").addEventListener("click", predictRecording);
  at("cancel-recording").addEventListener("click", () => recording.request && recording.request.abort());
  at("moment").addEventListener("input", () => seek(Number(at("moment").value)));
  at("draw-face").addEventListener("change", () => moveTo(now()));
  const video = at("video");
  video.addEventListener("play", follow);
  for (const kind of ["seeked", "timeupdate"]) video.addEventListener(kind, () => moveTo(now()));
  video.addEventListener("loadedmetadata", () => {
    if (!video.srcObject) showScreen();
    moveTo(now());
  });
  video.addEventListener("error", () => {
    if (!video.srcObject && video.src) showScreen();
  });
  new ResizeObserver(() => moveTo(now())).observe(video);
}
