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

document.addEventListener("DOMContentLoaded", () => {
  const job = document.querySelector("[data-events]");
  if (job) followJob(job);
  offerCopies(document);
});
document.addEventListener("htmx:after:swap", () => offerCopies(document));
