// Trainings: a list, and the chosen one with its loss, samples and what can be done with it.
// `props.value` is {runs: [{id, title, state, share, about}], chosen: {...} or null, bin: [{ticket, title}]}.
// Events: `choose`, `halt`, `resume`, `remove`, `reuse` {id}; `restore` {ticket}.

const WIDTH = 720;
const HEIGHT = 230;
const PAD = { left: 46, right: 10, top: 12, bottom: 26 };

const root = element.querySelector(".runs");
const bin = make("div", "notice");
bin.setAttribute("role", "status");
const list = make("div", "runs-list");
const detail = make("section", "run");
detail.setAttribute("aria-label", "The chosen training");
root.append(bin, list, detail);
const head = make("div", "run-head");
const status = make("div", "run-status");
status.setAttribute("role", "status");
const problem = make("div", "run-problem");
const plot = make("div", "run-plot");
const facts = make("div", "run-facts");
const samples = make("div", "run-samples");
const warnings = make("div", "run-warnings");
detail.append(head, status, problem, plot, facts, samples, warnings);

function entry(run) {
  const node = press("runs-item", undefined, `Show ${run.title}`, () => trigger("choose", { id: run.id }));
  node.dataset.id = run.id;
  const line = make("span", "runs-line");
  line.append(make("span", "runs-title", run.title), make("span", "state"));
  const bar = make("span", "bar");
  bar.append(make("i"));
  node.append(line, make("span", "quiet", run.about), bar);
  return node;
}

// In place: a click on an entry that is replaced between press and release is lost.
function renew(node, run, chosen) {
  node.classList.toggle("active", chosen);
  node.setAttribute("aria-pressed", String(chosen));
  const state = node.querySelector(".state");
  state.className = `state state-${run.state}`;
  state.textContent = run.state;
  node.querySelector(".bar i").style.width = `${run.share * 100}%`;
}

function actions(run) {
  const all = {
    halt: ["Stop", run.state === "stopping" ? "End at once, without waiting for the step" : "Finish this step, save, and stop"],
    resume: ["Resume", "Go on from where it was saved"],
    reuse: ["Use these settings", "Put them into the form above"],
    remove: ["Remove", "Take it off the list; its adapter stays in the library"],
  };
  return run.actions.map((name) => {
    const text = name === "halt" && run.state === "stopping" ? "Stop at once"
      : name === "resume" && run.state !== "stopped" ? "Try again" : all[name][0];
    const node = press("act", text, all[name][1], () => trigger(name, { id: run.id }));
    node.dataset.action = name;
    return node;
  });
}

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function ceiling(values) {
  // A single wild step must not flatten the rest.
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor((sorted.length - 1) * 0.98)] * 1.1 || 1;
}

function curve(points, steps) {
  const top = ceiling(points.map((one) => one[1]));
  const x = (step) => PAD.left + (step / Math.max(steps, 1)) * (WIDTH - PAD.left - PAD.right);
  const y = (loss) => PAD.top + (1 - Math.min(loss / top, 1)) * (HEIGHT - PAD.top - PAD.bottom);
  const last = points[points.length - 1];
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `Loss by step: ${last[2].toPrecision(3)} on average at step ${last[0]} of ${steps}`,
  });
  for (let part = 0; part <= 4; part += 1) {
    const loss = (top * part) / 4;
    picture.append(svg("line", { class: "rule", x1: PAD.left, x2: WIDTH - PAD.right, y1: y(loss), y2: y(loss) }));
    picture.append(svg("text", { x: PAD.left - 8, y: y(loss) + 4, "text-anchor": "end" }, loss.toPrecision(2)));
    const step = Math.round((steps * part) / 4);
    picture.append(svg("text", { x: x(step), y: HEIGHT - 7, "text-anchor": part === 4 ? "end" : "middle" }, step));
  }
  const path = (place) => points.map((one, at) => `${at ? "L" : "M"}${x(one[0]).toFixed(1)} ${y(one[place]).toFixed(1)}`).join("");
  picture.append(svg("path", { class: "raw", d: path(1) }), svg("path", { class: "smooth", d: path(2) }));
  const mark = svg("line", { class: "mark", y1: PAD.top, y2: HEIGHT - PAD.bottom, x1: -9, x2: -9 });
  const words = svg("text", { class: "told", x: WIDTH - PAD.right, y: PAD.top + 4, "text-anchor": "end" });
  picture.append(mark, words);
  picture.addEventListener("pointermove", (event) => {
    const at = ((event.clientX - picture.getBoundingClientRect().left) / picture.clientWidth) * WIDTH;
    const near = points.reduce((best, one) => (Math.abs(x(one[0]) - at) < Math.abs(x(best[0]) - at) ? one : best));
    mark.setAttribute("x1", x(near[0]));
    mark.setAttribute("x2", x(near[0]));
    words.textContent = `step ${near[0]}: ${near[1].toPrecision(3)}, average ${near[2].toPrecision(3)}`;
  });
  picture.addEventListener("pointerleave", () => {
    mark.setAttribute("x1", -9);
    mark.setAttribute("x2", -9);
    words.textContent = "";
  });
  return picture;
}

function sampleRow(group) {
  const row = make("div", "run-row");
  row.append(make("span", "quiet", `step ${group.step}`));
  const shelf = make("div", "run-shelf");
  for (const one of group.pictures) {
    const figure = make("figure");
    const link = make("a");
    link.href = one.source;
    link.target = "_blank";
    link.rel = "noopener";
    link.append(picture(one.source, `${one.prompt}, after ${group.step} steps`));
    figure.append(link, make("figcaption", "quiet", one.prompt));
    shelf.append(figure);
  }
  row.append(shelf);
  return row;
}

function drawChosen(run) {
  detail.hidden = !run;
  if (!run) return;
  fill(head, [run.id, run.title, run.state, run.about, run.actions], () => {
    const title = make("h3", "", run.title);
    title.append(make("span", `state state-${run.state}`, run.state));
    const row = make("div", "actions");
    row.append(...actions(run));
    return [title, make("p", "quiet", run.about), row];
  });
  fill(status, [run.words, run.share], () => {
    const bar = make("div", "bar");
    const done = make("i");
    done.style.width = `${run.share * 100}%`;
    bar.append(done);
    return [bar, make("span", "", run.words)];
  });
  problem.hidden = !run.problem;
  fill(problem, run.problem, () => [make("strong", "", "What went wrong"), make("pre", "", run.problem)]);
  plot.hidden = run.losses.length < 2;
  fill(plot, [run.losses, run.steps], () => (run.losses.length < 2 ? [] : [curve(run.losses, run.steps)]));
  fill(facts, run.facts, () => [definitions(run.facts)]);
  samples.hidden = !run.samples.length;
  fill(samples, run.samples, () => run.samples.map(sampleRow));
  warnings.hidden = !run.warnings.length;
  fill(warnings, run.warnings, () => run.warnings.map((words) => make("p", "quiet", words)));
}

function definitions(rows) {
  const node = make("dl", "facts");
  for (const [name, words] of rows) {
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", words));
    node.append(pair);
  }
  return node;
}

function draw() {
  const value = props.value || { runs: [], chosen: null, bin: [] };
  const gone = value.bin[0];
  bin.hidden = !gone;
  fill(bin, gone, () => (gone ? [make("span", "", `“${gone.title}” was removed.`),
    press("link", "Undo", "Bring it back", () => trigger("restore", { ticket: gone.ticket }))] : []));
  const chosen = value.chosen && value.chosen.id;
  fill(list, value.runs.map((run) => [run.id, run.title, run.about]), () => (value.runs.length ? value.runs.map(entry)
    : [make("p", "empty", "Your trainings gather here. They go on when this page or the studio is closed.")]));
  value.runs.forEach((run, at) => renew(list.children[at], run, run.id === chosen));
  drawChosen(value.chosen);
}

watch("value", draw);
draw();
