// The studio's own script: what HTML alone cannot do. Every page can be read without it.
"use strict";

// A job that goes on: its log by server-sent events; the page is loaded again when it has ended.
function followJob(box) {
  const log = document.getElementById("log");
  const find = (name) => box.querySelector(`[data-${name}]`);
  const source = new EventSource(box.dataset.events);
  source.addEventListener("log", (event) => {
    const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(JSON.parse(event.data).join("\n") + "\n");
    if (below) log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("state", (event) => {
    const now = JSON.parse(event.data), state = find("state"), steps = find("steps");
    state.textContent = now.words;
    state.className = `state ${now.state}`;
    find("time").textContent = now.time;
    if (find("reason").textContent !== now.reason) find("reason").textContent = now.reason;
    if (now.steps) {
      steps.max = now.steps[1];
      steps.value = now.steps[0];
    } else steps.removeAttribute("value");
  });
  source.addEventListener("end", () => {
    source.close();
    location.reload();
  });
  log.scrollTop = log.scrollHeight;
}

// Buttons that copy a command.
function offerCopies(root) {
  if (!navigator.clipboard) return;
  for (const button of root.querySelectorAll("[data-copy][hidden]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    });
  }
}

// The review queue: classes that match what is typed; the first one is chosen by Enter.
function filterClasses(input) {
  const box = input.form.querySelector("[data-classes]");
  if (!box) return;
  box.classList.toggle("filtering", input.value.trim() !== "");
  const word = input.value.trim(), small = word.toLowerCase();
  let first = null, exact = false;
  for (const button of box.querySelectorAll("[data-class]")) {
    const name = button.value.toLowerCase();
    button.hidden = !name.includes(small);
    button.classList.remove("first");
    exact ||= name === small;
    if (!button.hidden && small && (!first || (name.startsWith(small) && !first.value.toLowerCase().startsWith(small)))) first = button;
  }
  const fresh = box.querySelector("[data-new-class]");
  fresh.hidden = !word || exact;
  fresh.value = word;
  fresh.textContent = `New class ‘${word}’`;
  const chosen = first || (fresh.hidden ? null : fresh);
  if (chosen) chosen.classList.add("first");
}

// Keys of the pages that have them: a button's key is in its data-key; letters find a class.
function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const place = document.querySelector("#review, #many");
  if (!place) return;
  const focused = document.activeElement, input = place.querySelector("[data-filter]");
  if (focused === input && input) {
    if (event.key === "Escape") {
      input.value = "";
      filterClasses(input);
      input.blur();
    } else if (event.key === "Enter") {
      event.preventDefault();
      input.blur(); // the next image is answered by keys again
      place.querySelector("[data-classes] .first")?.click();
    }
    return;
  }
  if (focused?.matches("input:not([type=checkbox]), select, textarea")) return;
  if (focused?.matches("button, a, summary") && ["Enter", " "].includes(event.key)) return;
  const button = [...place.querySelectorAll("[data-key]")].find((one) => one.dataset.key === event.key);
  if (button) {
    event.preventDefault();
    button.click();
  } else if (input && /^[^\s]$/u.test(event.key)) {
    if (event.key === "/") event.preventDefault();
    input.focus(); // the letter goes where the focus is
  }
}

let lastMarked = null; // a click with Shift marks all tiles from here
function markTiles(event) {
  const box = event.target;
  if (!box.matches?.(".tile input")) return;
  const all = [...document.querySelectorAll(".tile input")];
  if (event.shiftKey && lastMarked) {
    const [from, to] = [all.indexOf(lastMarked), all.indexOf(box)].sort((a, b) => a - b);
    for (const one of all.slice(from, to + 1)) one.checked = box.checked;
  }
  lastMarked = box;
  countMarked(all);
}
function countMarked(all) {
  const count = all.filter((one) => one.checked).length, line = document.querySelector("[data-marked]");
  if (line) line.textContent = count ? `${count} marked` : "";
}

document.addEventListener("keydown", pressKey);
document.addEventListener("input", (event) => event.target.matches("[data-filter]") && filterClasses(event.target));
document.addEventListener("click", (event) => {
  markTiles(event);
  const button = event.target.closest("[data-focus], [data-mark]");
  if (button?.dataset.focus) document.getElementById(button.dataset.focus).focus();
  if (button?.dataset.mark) {
    const all = [...document.querySelectorAll(".tile input")], on = all.some((one) => !one.checked);
    for (const one of all) one.checked = on;
    countMarked(all);
  }
});
document.documentElement.classList.add("scripted");

document.addEventListener("DOMContentLoaded", () => {
  const job = document.querySelector("[data-events]");
  if (job) followJob(job);
  offerCopies(document);
});
document.addEventListener("htmx:after:swap", () => {
  offerCopies(document);
  const input = document.querySelector("[data-filter]");
  if (input?.value) filterClasses(input);
});
