// Pages of data: uploads in pieces, and choosing images by mouse and keyboard.
"use strict";

// SHA-256 of what comes in parts; the browser's own takes only a whole file.
class Sha256 {
  static K = Uint32Array.from(Sha256.primes(64), (p) => Sha256.fraction(Math.cbrt(p)));
  static primes(count) {
    const found = [];
    for (let n = 2; found.length < count; n++) if (found.every((p) => n % p)) found.push(n);
    return found;
  }
  static fraction(x) { return Math.floor((x - Math.floor(x)) * 2 ** 32); }
  constructor() {
    this.state = Uint32Array.from(Sha256.primes(8), (p) => Sha256.fraction(Math.sqrt(p)));
    this.rest = new Uint8Array(0);
    this.length = 0;
    this.words = new Uint32Array(64);
  }
  update(bytes) {
    this.length += bytes.length;
    const all = new Uint8Array(this.rest.length + bytes.length);
    all.set(this.rest);
    all.set(bytes, this.rest.length);
    const whole = all.length - (all.length % 64), view = new DataView(all.buffer);
    for (let start = 0; start < whole; start += 64) this.block(view, start);
    this.rest = all.slice(whole);
  }
  block(view, start) {
    const w = this.words, k = Sha256.K, turn = (x, n) => (x >>> n) | (x << (32 - n));
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(start + 4 * i);
    for (let i = 16; i < 64; i++) {
      const a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ (a >>> 3)) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ (b >>> 10));
    }
    let [a, b, c, d, e, f, g, h] = this.state;
    for (let i = 0; i < 64; i++) {
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g; g = f; f = e; e = (d + one) | 0; d = c; c = b; b = a; a = (one + two) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => { this.state[i] += value; });
  }
  hex() {
    const bits = this.length * 8, end = new Uint8Array(((this.rest.length + 9 + 63) >> 6 << 6) - this.rest.length);
    end[0] = 0x80;
    const view = new DataView(end.buffer);
    view.setUint32(end.length - 8, Math.floor(bits / 2 ** 32));
    view.setUint32(end.length - 4, bits >>> 0);
    this.update(end);
    return Array.from(this.state, (word) => word.toString(16).padStart(8, "0")).join("");
  }
}

// A folder as one tar file; the files are read only when their piece is sent.
function packFolder(entries) {
  const coder = new TextEncoder(), parts = [];
  const header = (name, size, time, kind) => {
    const block = new Uint8Array(512), put = (text, at) => block.set(coder.encode(text), at);
    block.set(name.slice(0, 100), 0);
    put("0000644\0" + "0000000\0" + "0000000\0", 100);
    put(size.toString(8).padStart(11, "0") + " ", 124);
    put(Math.floor(time / 1000).toString(8).padStart(11, "0") + " ", 136);
    put("        " + kind, 148);
    put("ustar\0" + "00", 257);
    put(block.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, "0") + "\0 ", 148);
    return block;
  };
  const pad = (size) => new Uint8Array((512 - (size % 512)) % 512);
  for (const { path, file } of entries) {
    const name = coder.encode(path);
    if (name.length > 100) {
      let record = "";
      for (let size = name.length; ; size++) {
        record = `${size} path=${path}\n`;
        if (coder.encode(record).length === size) break;
      }
      const body = coder.encode(record);
      parts.push(header(coder.encode("pax"), body.length, 0, "x"), body, pad(body.length));
    }
    parts.push(header(name, file.size, file.lastModified, "0"), file, pad(file.size));
  }
  parts.push(new Uint8Array(1024));
  return new Blob(parts);
}

async function readEntry(entry, path, found) {
  if (entry.name.startsWith(".") || entry.name === "__MACOSX") return;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ path: path + entry.name, file });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const one of some) await readEntry(one, `${path}${entry.name}/`, found);
  }
}

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function ask(address, method, body) {
  const answer = await fetch(address, { method, body, headers: { "hx-request": "true" } });
  const text = await answer.text();
  if ((answer.headers.get("content-type") || "").startsWith("application/json")) {
    return { status: answer.status, ...JSON.parse(text) };
  }
  const words = new DOMParser().parseFromString(text, "text/html").body.textContent.trim();
  throw Object.assign(new Error(words || `The studio answered ${answer.status}.`), { status: answer.status });
}

async function send(blob, name, show) {
  let { id, received, piece } = await ask("/studio/uploads/new", "POST", new URLSearchParams({ name, size: blob.size }));
  const sum = new Sha256(), began = Date.now(), first = received;
  for (let start = 0; start < blob.size; start += piece) {
    const bytes = new Uint8Array(await blob.slice(start, start + piece).arrayBuffer());
    sum.update(bytes);
    for (let pause = 500; received < start + bytes.length;) {
      try {
        const rest = bytes.subarray(received - start);
        received = (await ask(`/studio/uploads/${id}?offset=${received}`, "PUT", rest)).received;
      } catch (error) {
        if (error.status && error.status < 500) throw error;
        show(received, "The connection broke; it goes on by itself.");
        await wait(pause);
        pause = Math.min(2 * pause, 15000);
      }
    }
    const left = (blob.size - received) / Math.max(1, received - first) * (Date.now() - began) / 1000;
    show(Math.max(received, start), received > first && left > 2 ? `${Math.round(left)} s left` : "");
  }
  show(blob.size, "Looking at what arrived ...");
  const done = await ask(`/studio/uploads/${id}/finish`, "POST", new URLSearchParams({ sha256: sum.hex() }));
  if (!done.page) throw new Error(done.detail);
  location.assign(done.page);
}

function offerUploads(drop) {
  const find = (id) => document.getElementById(id);
  let busy = false;
  const begin = async (makeBlob, name) => {
    if (busy) return;
    busy = true;
    find("upload").hidden = false;
    find("upload-problem").hidden = true;
    find("upload-name").textContent = name;
    try {
      const blob = await makeBlob();
      await send(blob, name, (done, words) => {
        find("upload-progress").value = done / blob.size;
        const text = `${(done / 1e6).toFixed(1)} of ${(blob.size / 1e6).toFixed(1)} MB ${words}`;
        if (find("upload-words").textContent !== text) find("upload-words").textContent = text;
      });
    } catch (error) {
      find("upload-problem").textContent = error.message;
      find("upload-problem").hidden = false;
    }
    busy = false;
  };
  const folder = (entries, name) => {
    entries.sort((a, b) => (a.path < b.path ? -1 : 1));
    return begin(() => packFolder(entries), `${name}.tar`);
  };
  find("choose-file").addEventListener("change", (event) => {
    const file = event.target.files[0];
    if (file) begin(() => file, file.name);
    event.target.value = "";
  });
  find("choose-folder").addEventListener("change", (event) => {
    const entries = Array.from(event.target.files, (file) => ({ path: file.webkitRelativePath, file }));
    const seen = entries.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
    if (seen.length) folder(seen, seen[0].path.split("/")[0]);
    event.target.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const dropped = Array.from(event.dataTransfer.items, (item) => item.webkitGetAsEntry()).filter(Boolean);
    const file = event.dataTransfer.files[0];
    if (dropped.length === 1 && dropped[0].isFile) { begin(() => file, file.name); return; }
    const found = [];
    for (const entry of dropped) await readEntry(entry, "", found);
    if (found.length) folder(found, dropped.length === 1 ? dropped[0].name : "images");
  });
}

// Choosing images: events of the whole page, so that a part that is replaced needs nothing.
let lastBox = null;
const boxes = () => Array.from(document.querySelectorAll("#images input[name=row]"));

function countChosen() {
  const place = document.querySelector("[data-chosen]");
  if (!place) return;
  const count = boxes().filter((box) => box.checked).length;
  place.textContent = count ? `${count} chosen,` : "Choose images,";
}

document.addEventListener("click", (event) => {
  const box = event.target;
  if (box.matches?.("[data-anyway]")) document.querySelector("#images input[name=anyway]").checked = true;
  if (!box.matches?.("#images input[name=row]")) return;
  const all = boxes();
  if (event.shiftKey && lastBox && all.includes(lastBox)) {
    const [from, to] = [all.indexOf(lastBox), all.indexOf(box)].sort((a, b) => a - b);
    for (const one of all.slice(from, to + 1)) one.checked = box.checked;
  }
  lastBox = box;
  countChosen();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches?.("select, textarea, input:not([type=checkbox])")) return;
  if (event.key === "a" || event.key === "Escape") {
    for (const box of boxes()) box.checked = event.key === "a";
    countChosen();
  } else if (event.key === "z") document.querySelector("button[form=undo]")?.click();
  else if (/^[0-9]$/.test(event.key)) document.querySelector(`#images [data-key="${event.key}"]`)?.click();
  else return;
  event.preventDefault();
});

function showScripted() {
  for (const one of document.querySelectorAll(".needs-script[hidden]")) one.hidden = false;
  countChosen();
}
document.addEventListener("htmx:after:swap", showScripted);
document.addEventListener("DOMContentLoaded", () => {
  showScripted();
  const drop = document.getElementById("drop");
  if (drop) offerUploads(drop);
});
