// Dragging a row to another place in its list.

const EDGE = 24;
const SCROLL = 10;

/** Lets `handle` drag `row`. `drop(to)` is called at the end if the place is another; Escape lets go without. */
export function dragByHandle(handle, row, drop) {
  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    handle.setPointerCapture(event.pointerId);
    follow(handle, row, event, drop);
  });
}

function follow(handle, row, pressed, drop) {
  const rows = [...row.parentElement.children];
  const others = rows.filter((other) => other !== row);
  const from = rows.indexOf(row);
  const scroller = row.closest(".lora-loom-scrolls");
  const scrolled = scroller.scrollTop;
  // The pointer is measured in the window's pixels, whatever the graph's zoom is.
  const zoom = row.getBoundingClientRect().height / row.offsetHeight;
  const listening = new AbortController();
  const { signal } = listening;
  let to = from;

  const mark = () => {
    for (const other of others) other.classList.remove("lora-loom-drop-before", "lora-loom-drop-after");
    if (to === from) return;
    if (to < others.length) others[to].classList.add("lora-loom-drop-before");
    else others.at(-1).classList.add("lora-loom-drop-after");
  };
  const move = (event) => {
    const frame = scroller.getBoundingClientRect();
    if (event.clientY < frame.top + EDGE) scroller.scrollTop -= SCROLL;
    if (event.clientY > frame.bottom - EDGE) scroller.scrollTop += SCROLL;
    row.classList.add("lora-loom-dragged");
    row.style.translate = `0 ${(event.clientY - pressed.clientY) / zoom + scroller.scrollTop - scrolled}px`;
    to = others.filter((other) => middle(other) < event.clientY).length;
    mark();
  };
  const end = (dropped) => {
    listening.abort();
    const target = to;
    to = from;
    mark();
    row.classList.remove("lora-loom-dragged");
    row.style.translate = "";
    if (dropped && target !== from) drop(target);
  };
  handle.addEventListener("pointermove", move, { signal });
  handle.addEventListener("pointerup", () => end(true), { signal });
  handle.addEventListener("lostpointercapture", () => end(false), { signal });
  window.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
    },
    { signal, capture: true },
  );
}

function middle(element) {
  const { top, height } = element.getBoundingClientRect();
  return top + height / 2;
}
