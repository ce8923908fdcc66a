"use strict";

// The current sample: a number in the split, or a visitor's file (name, body, kind, isRecording); the modalities that are switched off; the
// percentage of missing frames.
const state = { number: 0, file: null, off: new Set(), missing: 0, draw: 0 };
const titles = { student: "Student", teacher: "Teacher", control: "Control: the student without distillation" };
const at = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") || "";
let pending = null; // the request under way, which a newer one replaces
let searching = null;
let modalities = [];

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) {
    at("token-form").hidden = false;
    at("token").focus();
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    const detail = typeof body.detail === "string" ? body.detail : (body.detail || []).map((d) => d.msg).join("; ");
    throw new Error(detail || `the service answered ${response.status}`);
  }
  return response.json();
}

function fail(error) {
  if (error.name === "AbortError") return;
  at("problem").textContent = error.message;
  at("problem").hidden = false;
}

// ------------------------------------------------------------------------------------------------ what is shown

function query() {
  const parts = new URLSearchParams({ missing: (state.missing / 100).toFixed(2), draw: state.draw });
  for (const m of state.off) parts.append("off", m);
  return parts.toString();
}

function remember() {
  const parts = new URLSearchParams({ sample: state.number, missing: state.missing, draw: state.draw });
  for (const m of state.off) parts.append("off", m);
  history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const integer = (name, most) => Math.min(most, Math.max(0, parseInt(parts.get(name), 10) || 0));
  state.number = integer("sample", 1e9);
  state.missing = 5 * Math.round(integer("missing", 100) / 5);
  state.draw = integer("draw", 1e6);
  state.off = new Set(parts.getAll("off").filter((m) => modalities.includes(m)));
}

async function look() {
  if (pending) pending.abort();
  const request = (pending = new AbortController());
  const options = { signal: request.signal };
  at("cards").setAttribute("aria-busy", "true");
  let path = `v1/samples/${state.number}?${query()}`;
  if (state.file) {
    Object.assign(options, { method: "POST", body: state.file.body, headers: { "Content-Type": state.file.kind } });
    path = `v1/explore?${query()}`;
  } else {
    remember();
  }
  try {
    const found = await ask(path, options);
    at("problem").hidden = true;
    show(found);
  } catch (error) {
    if (error.name !== "AbortError") clear();
    fail(error);
  } finally {
    if (pending === request) at("cards").setAttribute("aria-busy", "false");
  }
}

// ------------------------------------------------------------------------------------------------------ answers

function show(found) {
  for (const m of modalities) showFrames(m, found.visible[m] || []);
  if (state.file && state.file.isRecording) showTimeline(found.visible);
  const student = found.answers.student || Object.values(found.answers)[0];
  const name = state.file ? state.file.name : found.id;
  at("said").replaceChildren(
    element("span", {}, `${name}${found.truth ? `, labelled ${found.truth}` : ""}: `),
    element("span", { className: "verdict" }, `the student predicts ${said(student)}`),
  );
  const seen = Object.values(found.visible).some((frames) => frames.some(Boolean));
  fillBars(at("glance"), student, found.truth);
  if (!seen) at("said").append(element("strong", { className: "guessing" }, "Nothing is visible, so this is a guess."));
  for (const [role, answer] of Object.entries(found.answers)) showAnswer(role, answer, found.truth);
  const card = at("card-student");
  if (card && seen) card.append(...found.effects.map(effectsOf));
}

// What each modality adds, as bars to the right or left of zero.
function effectsOf(effects) {
  const answer = [effects.question, effects.label].filter(Boolean).join(": ");
  const isScore = effects.quantity === "score";
  const shares = Object.entries(effects.modalities).map(([m, effect]) => [m, isScore ? effect.value : effect.probability]);
  const most = isScore ? Math.max(1, ...shares.map(([, value]) => Math.abs(value))) : 1;
  const title = isScore ? "What each modality adds to the score" : `What each modality adds to “${answer}”`;
  const bars = shares.map(([m, value]) => {
    const fill = element("div", { className: value < 0 ? "less" : "more" });
    fill.style.width = `${(50 * Math.abs(value)) / most}%`;
    const number = isScore ? value.toFixed(2) : `${(100 * value).toFixed(1)} %`;
    return element("div", { className: "group" }, element("span", { className: "name" }, m), element("div", { className: "balance" }, fill),
      element("span", { className: "number" }, `${value < 0 ? "−" : "+"}${number.replace("-", "")}`));
  });
  return element("div", { className: "effects", title: "The prediction minus the prediction without the modality" }, element("h4", {}, title), element("div", { className: "bars" }, ...bars));
}

// An error replaces what was shown before.
function clear() {
  for (const m of modalities) showFrames(m, []);
  for (const id of ["said", "glance", "cards"]) at(id).replaceChildren();
}

function said(answer) {
  if (typeof answer.label === "string") {
    return answer.score === undefined ? answer.label : `${answer.score.toFixed(2)} (${answer.label})`;
  }
  return Object.entries(answer.label).map(([q, a]) => `${q} ${a}`).join(", ");
}

function showFrames(m, visible) {
  const strip = at(`strip-${modalities.indexOf(m)}`);
  const there = visible.filter(Boolean).length;
  strip.setAttribute("viewBox", `0 0 ${Math.max(1, visible.length)} 1`);
  const drawn = visible.flatMap((seen, index) => {
    if (!seen) return [];
    const frame = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ x: index + 0.04, y: 0, width: 0.92, height: 1 })) frame.setAttribute(key, value);
    return [frame];
  });
  strip.replaceChildren(...drawn);
  at(`share-${modalities.indexOf(m)}`).textContent = visible.length ? `${there} of ${visible.length} frames` : "missing";
}

// The card of a network is made once; afterwards its bars move.
function showAnswer(role, answer, truth) {
  let card = at(`card-${role}`);
  if (!card) {
    card = element("article", { id: `card-${role}`, className: `card ${role}` });
    at("cards").append(card);
  }
  const right = truth && typeof answer.label === "string" && answer.score === undefined ? answer.label === truth : null;
  const verdict = element("span", { className: `verdict ${right === null ? "" : right ? "right" : "wrong"}` }, said(answer));
  if (right !== null) verdict.append(right ? " (right)" : " (wrong)");
  const head = element("div", { className: "head" }, element("h3", {}, titles[role] || role), verdict);
  const bars = card.querySelector(".bars") || element("div", { className: "bars" });
  fillBars(bars, answer, truth);
  card.replaceChildren(head, bars, ...notes(answer));
}

function rows(answer) {
  if (!answer.probabilities) return [];
  const first = Object.values(answer.probabilities)[0];
  if (typeof first === "number") return Object.entries(answer.probabilities).map(([c, p]) => [c, p, c === answer.label]);
  return Object.entries(answer.probabilities).map(([q, shares]) => [q, shares.yes, answer.label[q] === "yes"]);
}

function fillBars(bars, answer, truth) {
  const wanted = rows(answer);
  if (bars.childElementCount !== wanted.length) {
    bars.replaceChildren(...wanted.map(() => element("div", { className: "group" },
      element("span", { className: "name" }),
      element("div", { className: "track" }, element("div", { className: "fill" })),
      element("span", { className: "number" }))));
  }
  wanted.forEach(([name, share, chosen], index) => {
    const group = bars.children[index];
    group.className = `group ${chosen ? "chosen" : ""}`;
    group.querySelector(".name").textContent = name;
    group.querySelector(".name").className = `name ${name === truth ? "truth" : ""}`;
    group.querySelector(".fill").style.width = percent(share, 2).replace(" ", "");
    group.querySelector(".number").textContent = percent(share, 1);
  });
}

function notes(answer) {
  const out = [];
  if (answer.interval) out.push(element("p", { className: "note" }, `Not ruled out: ${answer.interval.map((x) => x.toFixed(2)).join(" to ")}.`));
  if (Array.isArray(answer.prediction_set)) out.push(element("p", { className: "note" }, `Not ruled out: ${answer.prediction_set.join(", ") || "nothing"}.`));
  else if (answer.prediction_set) {
    const open = Object.entries(answer.prediction_set).filter(([, held]) => held.length > 1).map(([q]) => q);
    out.push(element("p", { className: "note" }, open.length ? `Left open: ${open.join(", ")}.` : "Nothing is left open."));
  }
  const r = answer.reliability;
  if (!r) return [...out, element("p", { className: "note" }, "No similar condition was tested.")];
  const error = r.measured.ece_calibrated ?? r.measured.ece;
  const line = element("p", { className: "note" }, `Tested with ${conditionName(r.condition)} on ${r.samples.toLocaleString("en")} samples: F1 `,
    element("b", {}, (100 * r.measured.weighted_f1).toFixed(1)));
  if (error !== undefined) line.append(", calibration error ", element("b", {}, percent(error, 1)));
  if (r.measured.mae !== undefined) line.append(", mean absolute error ", element("b", {}, r.measured.mae.toFixed(3)));
  line.append(r.harder ? "; more is missing from this sample." : ".");
  return [...out, line];
}

function conditionName(name) {
  const ratio = /^ratio-([\d.]+)$/.exec(name);
  if (ratio) return `${percent(Number(ratio[1]))} of all frames missing`;
  return name === "complete" ? "nothing missing" : `only ${name.split("+").join(" and ")}`;
}

// ----------------------------------------------------------------------------------------------------- controls

function makeSwitches() {
  at("modalities").replaceChildren(...modalities.map((m, index) => {
    const box = element("input", { type: "checkbox", checked: !state.off.has(m), id: `switch-${index}` });
    box.addEventListener("change", () => {
      if (box.checked) state.off.delete(m);
      else state.off.add(m);
      look();
    });
    const strip = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    strip.id = `strip-${index}`;
    strip.setAttribute("class", "strip");
    strip.setAttribute("preserveAspectRatio", "none");
    strip.setAttribute("aria-hidden", "true");
    const label = element("label", {}, box, element("span", {}, m), element("span", { className: "share", id: `share-${index}` }));
    return element("div", { className: "modality" }, label, strip);
  }));
}

async function list(start = 0) {
  if (searching) searching.abort();
  searching = new AbortController();
  try {
    const parts = new URLSearchParams({ search: at("search").value, start, count: 200 });
    const found = await ask(`v1/samples?${parts}`, { signal: searching.signal });
    at("split").textContent = found.split || "test";
    at("samples").replaceChildren(...found.samples.map((s) =>
      element("option", { value: s.number, selected: s.number === state.number && !state.file }, `${s.id}  ${s.truth}`)));
    const listed = `${start + 1} to ${start + found.samples.length}`;
    const more = found.total > found.samples.length ? `, of which ${listed} are listed` : "";
    at("found").textContent = `${found.total.toLocaleString("en")} found${more}`;
    return found;
  } catch (error) {
    fail(error);
    return { total: 0, samples: [] };
  }
}

function pick(number) {
  leaveRecording();
  state.number = number;
  state.file = null;
  at("samples").value = String(number);
  look();
}

function openFile(file) {
  if (!file) return;
  const features = /\.(npz|json)$/i.exec(file.name);
  if (!features && recording.limits) {
    chooseRecording(file);
    return;
  }
  leaveRecording();
  openSample({ name: file.name, body: file, kind: features && features[1].toLowerCase() === "npz" ? "application/x-npz" : "application/json" });
}

function openSample(sample) {
  state.file = sample;
  at("samples").value = "";
  look();
}

function connect() {
  at("search").addEventListener("input", () => list());
  at("samples").addEventListener("change", () => pick(Number(at("samples").value)));
  at("random").addEventListener("click", async () => {
    at("search").value = "";
    const number = Math.floor(Math.random() * (await list()).total);
    await list(Math.max(0, number - 3));
    pick(number);
  });
  at("file").addEventListener("change", () => {
    openFile(at("file").files[0]);
    at("file").value = "";
  });
  at("missing").addEventListener("input", () => {
    state.missing = Number(at("missing").value);
    at("share").textContent = `${state.missing} %`;
    look();
  });
  at("again").addEventListener("click", () => {
    state.draw += 1;
    look();
  });
  at("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token = at("token").value;
    sessionStorage.setItem("token", token);
    at("token-form").hidden = true;
    at("problem").hidden = true;
    start();
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      if (kind === "drop") openFile(event.dataTransfer.files[0]);
    });
  }
}

async function start() {
  try {
    const model = await ask("v1/model");
    modalities = Object.keys(model.modalities);
    const data = model.about.data && model.about.data.name;
    const labels = model.target.questions.length ? model.target.questions : model.target.classes;
    at("about").textContent = `Predicts ${labels.join(", ")} from ${modalities.join(", ")}${data ? `; trained on ${data}` : ""}`;
    recall();
    at("missing").value = state.missing;
    at("share").textContent = `${state.missing} %`;
    makeSwitches();
    acceptRecordings(model.recordings);
    const found = await list(Math.max(0, state.number - 3));
    if (found.total) look();
    else at("said").textContent = "No samples are loaded; open a file of your own.";
  } catch (error) {
    fail(error);
  }
}

connect();
connectRecording();
start();
