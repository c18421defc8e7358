// The page that teaches: holding a button records a class, dropped files are its pictures, and bars move while one watches.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const find = (id) => document.getElementById(id), teach = find("teach");
  if (!teach) return;
  const SHOT_MS = 120, SHOT_PIXELS = 320, BATCH = 16, BATCH_BYTES = 8e6, LOOK_MS = 400, SHOWN = 8;
  const view = find("teach-view"), hidden = teach.querySelector("input[name=data]");
  let stream = null, held = null, sending = Promise.resolve(), last = 0;

  const say = (text) => { find("teach-problem").textContent = text; find("teach-problem").hidden = !text; };

  // Pictures go to the studio as they come, one batch after the other; what fails is sent again.
  const post = (address, fields) => {
    const form = new FormData();
    for (const [name, value] of fields) form.append(name, value);
    return ask(address, "POST", form);
  };
  const setId = (id) => {
    if (teach.dataset.id === id) return;
    teach.dataset.id = hidden.value = id;
    history.replaceState(null, "", `/studio/teach?data=${id}`);
  };
  const showCounts = (counts) => {
    for (const card of teach.querySelectorAll(".taught")) {
      const name = card.querySelector("[data-name]").value.trim();
      if (name in counts) card.dataset.class = name;
      card.querySelector("[data-count]").textContent = counts[name] || 0;
    }
  };
  const deliver = async (card, blobs) => {
    for (let pause = 500; ; pause = Math.min(2 * pause, 10000)) {
      const name = card.querySelector("[data-name]").value.trim();
      try {
        const given = await post("/studio/teach/images", [["data", teach.dataset.id], ["run", teach.dataset.parent],
          ["label", name], ...blobs.map((blob) => ["image", blob])]);
        if (!given.data) throw Object.assign(new Error(given.detail || "The studio did not take the pictures."), given);
        setId(given.data);
        showCounts(given.counts);
        say(given.known ? `${given.known} of these pictures were there already, so they were not added again.` : "");
        return;
      } catch (error) {
        say(error.status ? error.message : "The studio cannot be reached: the pictures are sent as soon as it can.");
        if (error.status && error.status < 500) return;
        await wait(pause);
      }
    }
  };
  const keep = (card, blob) => {
    const picture = new Image(56, 56);
    picture.alt = "";
    picture.src = URL.createObjectURL(blob);
    picture.onload = () => URL.revokeObjectURL(picture.src);
    picture.onerror = () => picture.remove();
    const box = card.querySelector("[data-shots]");
    box.append(picture);
    while (box.children.length > SHOWN) box.firstChild.remove();
    card.waiting = [...(card.waiting || []), blob];
    if (card.waiting.length >= BATCH) flush(card);
  };
  const flush = (card) => {
    let batch = [], size = 0;
    const send = (blobs) => { if (blobs.length) sending = sending.then(() => deliver(card, blobs)); };
    for (const blob of card.waiting || []) {
      if (batch.length === BATCH || size + blob.size > BATCH_BYTES) { send(batch); batch = []; size = 0; }
      batch.push(blob);
      size += blob.size;
    }
    send(batch);
    card.waiting = [];
  };

  // The webcam.
  const startCamera = async () => {
    if (stream) return true;
    if (!navigator.mediaDevices) { say("This browser gives no webcam here: drop pictures on a class."); return false; }
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      say(`The webcam cannot be used (${error.name}): allow it in the browser, or drop pictures on a class.`);
      return false;
    }
    say("");
    view.srcObject = stream;
    view.hidden = find("camera-off").hidden = false;
    find("camera-words").textContent = "Hold a button, by mouse or with the space bar.";
    await view.play();
    return true;
  };
  const stopCamera = () => {
    for (const track of stream?.getTracks() || []) track.stop();
    stream = null;
    view.hidden = find("camera-off").hidden = true;
    find("camera-words").textContent = "The webcam is off.";
  };
  find("camera-off").addEventListener("click", stopCamera);
  const shoot = () => new Promise((resolve) => {
    const scale = Math.min(1, SHOT_PIXELS / Math.max(view.videoWidth, view.videoHeight));
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(scale * view.videoWidth);
    canvas.height = Math.round(scale * view.videoHeight);
    canvas.getContext("2d").drawImage(view, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(resolve, "image/jpeg", 0.92);
  });
  const record = async (button) => {
    if (held) return;
    held = button;
    if (!(await startCamera())) { held = null; return; }
    const card = button.closest(".taught");
    button.classList.add("recording");
    while (held === button && stream) {
      const [blob] = await Promise.all([shoot(), wait(SHOT_MS)]);
      if (blob) keep(card, blob);
    }
    button.classList.remove("recording");
    flush(card);
  };
  const release = () => { held = null; };
  teach.addEventListener("pointerdown", (event) => {
    const button = event.target.closest("[data-hold]");
    if (button && event.button === 0) record(button);
  });
  for (const kind of ["pointerup", "pointercancel", "blur"]) window.addEventListener(kind, release);
  teach.addEventListener("keydown", (event) => {
    if (![" ", "Enter"].includes(event.key) || !event.target.matches("[data-hold]")) return;
    event.preventDefault();
    if (!event.repeat) record(event.target);
  });
  teach.addEventListener("keyup", (event) => { if ([" ", "Enter"].includes(event.key)) release(); });
  teach.addEventListener("focusout", (event) => { if (event.target === held) release(); });
  teach.addEventListener("contextmenu", (event) => { if (event.target.closest("[data-hold]")) event.preventDefault(); });

  // Files: on a class its pictures; folders anywhere are classes.
  const cardOf = (name) => {
    const all = [...teach.querySelectorAll(".taught")], field = (card) => card.querySelector("[data-name]");
    const same = all.find((card) => field(card).value.trim() === name);
    const card = same || all.find((one) => !one.dataset.class && one.querySelector("[data-count]").textContent === "0" && !one.claimed) || addClass();
    card.claimed = true;
    field(card).value = name;
    return card;
  };
  const addClass = () => {
    find("new-class").before(find("new-class").content.cloneNode(true));
    const card = [...teach.querySelectorAll(".taught")].at(-1), names = new Set();
    for (const one of teach.querySelectorAll("[data-name]")) names.add(one.value.trim());
    let number = 1;
    while (names.has(`Class ${number}`)) number += 1;
    card.querySelector("[data-name]").value = `Class ${number}`;
    find("classes").insertBefore(card, find("add-class").parentElement);
    return card;
  };
  find("add-class").addEventListener("click", () => addClass().querySelector("[data-name]").select());
  const isPicture = (file) => file.type.startsWith("image/");
  const take = (card, files) => {
    const pictures = files.filter(isPicture);
    if (!pictures.length) say("There is no picture among these files. A zip belongs on the page Data.");
    for (const file of pictures) keep(card, file);
    flush(card);
  };
  teach.addEventListener("change", (event) => {
    if (event.target.matches("[data-files]")) {
      take(event.target.closest(".taught"), [...event.target.files]);
      event.target.value = "";
    } else if (event.target.matches("[data-try]")) {
      look(event.target.files[0]);
    } else if (event.target.matches("[data-name]")) {
      const card = event.target.closest(".taught"), old = card.dataset.class, name = event.target.value.trim();
      if (!name) { event.target.value = old || "Class"; return; }
      if (!old || old === name) return;
      sending = sending.then(async () => {
        try {
          showCounts((await post("/studio/teach/rename", [["data", teach.dataset.id], ["old", old], ["label", name]])).counts);
        } catch (error) { say(error.message); }
      });
    }
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const card = event.target.closest?.(".taught"), files = [...event.dataTransfer.files], found = [];
    const entries = Array.from(event.dataTransfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.some((entry) => entry.isDirectory)) {
      if (card) take(card, files);
      else say("Drop pictures on a class, or a folder with one folder for each class.");
      return;
    }
    for (const entry of entries) await readEntry(entry, "", found);
    const classes = new Map();
    for (const { path, file } of found) {
      const name = path.split("/").at(-2);
      if (name && isPicture(file)) classes.set(name, [...(classes.get(name) || []), file]);
    }
    if (!classes.size) say("There is no picture in this folder.");
    for (const [name, some] of [...classes].sort()) take(cardOf(name), some);
  });

  // The pictures are on the disk before the lesson begins.
  teach.querySelector("form").addEventListener("submit", (event) => {
    if (teach.delivered) { teach.delivered = false; return; }
    event.preventDefault();
    event.stopImmediatePropagation();
    const form = event.target; // a form cannot be submitted again while it tells of a submission: hence the pause
    sending.then(() => wait(0)).then(() => { teach.delivered = true; form.requestSubmit(); });
  }, true);

  // What it says of what the webcam sees, again and again while it is on.
  const look = async (blob) => {
    const lesson = find("lesson"), form = new FormData();
    if (!blob || !lesson?.dataset.made) return;
    form.append("image", blob, "picture");
    const answer = await fetch(`/studio/teach/answer/${encodeURIComponent(lesson.dataset.made)}`,
      { method: "POST", body: form, headers: { "hx-request": "true" } });
    const bars = find("bars");
    if (bars) bars.innerHTML = await answer.text();
  };
  const watch = async () => {
    for (;;) {
      await wait(LOOK_MS);
      if (!stream || held || document.hidden || !find("bars")) continue;
      try { await look(await shoot()); } catch { await wait(2000); } // it comes back by itself
    }
  };
  watch();
  teach.addEventListener("click", (event) => { if (event.target.closest("[data-camera]")) startCamera(); });
  addEventListener("pagehide", stopCamera);
});
