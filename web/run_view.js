// The run widget's DOM: built once, then brought up to date with the run's state.

import { api } from "../../scripts/api.js";
import { el, setText } from "./dom.js";
import { curveRange, drawCurve } from "./loss_curve.js";
import { isOver } from "./run_state.js";
import {
  duration,
  fileName,
  learningRateText,
  lossText,
  phaseDetail,
  phaseName,
  rateText,
  remainingText,
  share,
  skippedText,
  validationText,
  validationTitle,
} from "./run_text.js";
import { times } from "./run_times.js";

/** Builds the parts of one widget; `curve` is false for runs that have no loss. */
export function buildRunView(curve) {
  const p = {
    // The name alone is read aloud when it changes, not every count.
    phase: el("span", { class: "lora-loom-phase-name", "aria-live": "polite" }),
    detail: el("span", { class: "lora-loom-phase-detail" }),
    stop: el("button", { class: "lora-loom-stop lora-loom-button", type: "button" }),
    bar: el("progress", { class: "lora-loom-bar", max: "1", "aria-label": "Progress" }),
    step: el("span", { class: "lora-loom-step" }),
    loss: el("span", { class: "lora-loom-loss", title: "Smoothed loss" }),
    learningRate: el("span", { class: "lora-loom-learning-rate", title: "Learning rate" }),
    elapsed: el("span", { class: "lora-loom-elapsed" }),
    remaining: el("span", { class: "lora-loom-remaining" }),
    rate: el("span", { class: "lora-loom-rate" }),
    canvas: el("canvas", { class: "lora-loom-curve", role: "img", "data-points": "0" }),
    high: el("span", { class: "lora-loom-axis lora-loom-axis-high" }),
    low: el("span", { class: "lora-loom-axis lora-loom-axis-low" }),
    first: el("span", { class: "lora-loom-axis lora-loom-axis-first" }),
    last: el("span", { class: "lora-loom-axis lora-loom-axis-last" }),
    validation: el("div", { class: "lora-loom-validation" }),
    skipped: el("div", { class: "lora-loom-skipped lora-loom-warning" }),
    warnings: el("ul", { class: "lora-loom-warnings lora-loom-scrolls" }),
    error: el("div", { class: "lora-loom-error lora-loom-scrolls", role: "alert" }),
    problem: el("div", { class: "lora-loom-problem", role: "alert" }),
    caption: el("div", { class: "lora-loom-caption" }),
    image: el("img", { class: "lora-loom-sample" }),
    imageLink: el("a", { target: "_blank", rel: "noopener" }),
    imageText: el("figcaption", { class: "lora-loom-sample-text" }),
  };
  p.imageLink.append(p.image);
  p.picture = el("figure", { class: "lora-loom-picture" }, p.imageLink, p.imageText);
  p.facts = el("div", { class: "lora-loom-facts" }, p.step, p.elapsed, p.remaining, p.rate, p.loss, p.learningRate);
  const phase = el("div", { class: "lora-loom-phase" }, p.phase, " ", p.detail);
  const head = el("div", { class: "lora-loom-head" }, phase, p.stop);
  p.top = el("div", { class: "lora-loom-top lora-loom-selectable" }, head, p.bar, p.facts);
  p.plot = el("div", { class: "lora-loom-plot" }, p.canvas, p.high, p.low, p.first, p.last);
  const notes = [p.error, p.problem, p.validation, p.skipped, p.warnings, p.caption, p.picture];
  p.bottom = el("div", { class: "lora-loom-bottom lora-loom-selectable" }, ...notes);
  // "widget-expands" makes Nodes 2.0 give the widget the node's spare height.
  p.root = el("div", { class: "lora-loom-run widget-expands" }, p.top, p.plot, p.bottom);
  p.hasCurve = curve;
  return p;
}

/**
 * Shows `state`, or that there is none yet. `turn`: the node waits in the queue, or has its turn and its run says nothing yet, as in `turnOf`;
 * `changed`: the run had other settings; `asked`: it was just asked to stop. `now` is the server's clock.
 */
export function showRun(p, state, { turn, changed, asked, problem, now }) {
  const shown = turn ? null : state;
  p.root.dataset.state = turn || (changed ? "changed" : (state?.status ?? "idle"));
  p.root.dataset.run = state?.id ?? "";
  setText(p.phase, phaseName(state, turn, changed));
  setText(p.detail, phaseDetail(state, turn, changed));
  p.detail.title = shown?.adapter ?? "";
  p.stop.hidden = !shown || isOver(shown);
  p.stop.disabled = asked || state?.status === "stopping";
  p.stop.textContent = p.stop.disabled ? "Stopping…" : "Stop (save)";
  for (const part of [p.bar, p.facts, p.bottom]) part.hidden = !shown;
  p.plot.hidden = !p.hasCurve || !shown?.points.length;
  if (!shown) return;
  showFacts(p, shown, now);
  if (!p.plot.hidden) showCurve(p, shown);
  showNotes(p, shown);
  setText(p.problem, problem);
  showPicture(p, shown);
}

function showFacts(p, state, now) {
  const done = share(state);
  p.bar.hidden = done === null;
  if (done !== null) p.bar.value = done;
  const time = times(state, now);
  setText(p.step, state.total > 0 ? `${p.hasCurve ? "Step" : "Picture"} ${state.step} of ${state.total}` : "");
  setText(p.elapsed, time.elapsed === null ? "" : `${duration(time.elapsed)} elapsed`);
  setText(p.remaining, remainingText(state, time));
  setText(p.rate, state.rate > 0 ? rateText(state.rate) : "");
  setText(p.learningRate, state.learningRate === null ? "" : `LR ${learningRateText(state.learningRate)}`);
  const hasLoss = state.lossStep > 0 && p.hasCurve;
  const smooth = state.lossIsNumber ? state.points.at(-1)?.smooth : null;
  setText(p.loss, hasLoss ? `Loss ${lossText(smooth)}` : "");
}

function showCurve(p, state) {
  const { first, last, low, high } = curveRange(state.points, state.validations);
  setText(p.high, lossText(high));
  setText(p.low, lossText(low));
  setText(p.first, String(first));
  setText(p.last, String(last));
  p.canvas.setAttribute("aria-label", `Loss from step ${first} to ${last}, between ${lossText(low)} and ${lossText(high)}`);
  drawCurve(p.canvas, state.points, state.validations);
}

function showNotes(p, state) {
  setText(p.validation, validationText(state.validations.at(-1)));
  p.validation.title = validationTitle(state.validations);
  setText(p.skipped, skippedText(state));
  if (p.shownWarnings !== state.warnings) {
    p.shownWarnings = state.warnings;
    p.warnings.replaceChildren(...state.warnings.map((text) => el("li", { class: "lora-loom-warning", text })));
    p.warnings.hidden = !state.warnings.length;
  }
  setText(p.error, state.error);
  setText(p.caption, state.caption ? `${fileName(state.caption.image)}: ${state.caption.text}` : "");
}

function showPicture(p, { id, sample }) {
  p.picture.hidden = !sample;
  if (!sample) return;
  const url = sampleUrl(id, sample.file);
  // Setting the same address again would make the picture flicker.
  if (p.image.getAttribute("src") !== url) {
    p.image.src = p.imageLink.href = url;
    p.image.alt = `Sample at step ${sample.step}: ${sample.prompt}`;
    p.image.title = sample.prompt;
  }
  setText(p.imageText, `Step ${sample.step}: ${sample.prompt}`);
}

/** The address of a file in a run's folder, served by ComfyUI's own /view. */
function sampleUrl(id, file) {
  const path = file.split(/[\\/]/);
  const query = new URLSearchParams({
    type: "output",
    filename: path.pop(),
    subfolder: ["lora_loom", "runs", id, ...path].join("/"),
  });
  return api.apiURL(`/view?${query}`);
}
