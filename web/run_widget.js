// Puts the run widget on a node and keeps it on the run that the node started.

import { followHeight, onGraph, shareEvents } from "./dom.js";
import { serverNow, stopRun, watch } from "./run_feed.js";
import { isOver } from "./run_state.js";
import { buildRunView, showRun } from "./run_view.js";

const MARGIN = 6;
const BORDERS = 2;
const CURVE_MIN_HEIGHT = 110;
const IDLE_HEIGHT = 44;

/** Adds the widget to `node`. `task` is the kind of run that the node starts. */
export function addRunWidget(node, { task, curve }) {
  const view = buildRunView(curve);
  let state = null;
  let asked = false;
  let problem = "";
  let frame = 0;
  let ticker = 0;
  let unwatch = null;

  const fixed = () => 2 * MARGIN + BORDERS + (view.plot.hidden ? 0 : CURVE_MIN_HEIGHT);
  const measured = followHeight(node, view.root, [view.top, view.bottom], fixed, IDLE_HEIGHT);
  const widget = node.addDOMWidget("lora_loom_run", "LOOM_RUN", view.root, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
    getMinHeight: () => measured.height(),
    // Without a curve there is nothing that could use more room.
    getMaxHeight: () => (view.plot.hidden ? measured.height() : undefined),
  });
  widget.serialize = false; // not among a saved graph's widgets_values

  const render = () => {
    frame = 0;
    showRun(view, state, { asked, problem, now: serverNow() });
    measured.measure();
  };
  const renderSoon = () => (frame ||= requestAnimationFrame(render));
  // A canvas has to be drawn anew at each size.
  new ResizeObserver(renderSoon).observe(view.plot);

  const watcher = {
    // The run on display stays, also when the name is edited meanwhile.
    owns: (run) => run.id === state?.id || isRunOf(run, node, task),
    show(newState) {
      if (newState === state) return;
      if (newState.id !== state?.id) {
        asked = false;
        problem = "";
      }
      state = newState;
      clearInterval(ticker);
      if (unwatch && !isOver(state)) ticker = setInterval(renderSoon, 1000);
      renderSoon();
    },
  };
  view.stop.addEventListener("click", async () => {
    asked = true;
    problem = "";
    renderSoon();
    try {
      await stopRun(state.id);
    } catch (error) {
      asked = false;
      problem = `Could not stop the run: ${error.message}`;
      renderSoon();
    }
  });
  onGraph(
    node,
    view.root,
    () => (unwatch ??= watch(watcher)),
    () => {
      unwatch?.();
      unwatch = null;
      clearInterval(ticker);
    },
  );
  shareEvents(view.root);
  render();
}

/** Whether `node` started `run`: "5:3" is node 3 in the subgraph of node 5. */
function isRunOf(run, node, task) {
  if (run.task && run.task !== task) return false;
  let graph = node.graph?.rootGraph;
  let found = null;
  for (const id of String(run.node).split(":")) {
    found = graph?.getNodeById(id);
    graph = found?.subgraph;
  }
  if (!found || found !== node) return false;
  const name = task === "caption" ? null : nameOf(node);
  return name === null || name === run.name;
}

/** The name that the node trains under, or null when a link supplies it. */
function nameOf(node) {
  const isName = (item) => item.name === "name";
  if (node.inputs?.find(isName)?.link != null) return null;
  return node.widgets?.find(isName)?.value ?? null;
}
