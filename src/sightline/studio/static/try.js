// The page that tries an image: dropping, pasting, and the webcam.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const find = (id) => document.getElementById(id), form = document.querySelector("#try form");
  if (!form) return;
  const field = find("image"), view = find("camera-view");
  let stream = null;
  const put = (file) => {
    const held = new DataTransfer();
    held.items.add(file);
    field.files = held.files;
    form.requestSubmit();
  };
  const say = (text) => { find("try-problem").textContent = text; find("try-problem").hidden = !text; };
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) put(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => { if (event.clipboardData.files[0]) put(event.clipboardData.files[0]); });
  field.addEventListener("change", () => say(""));
  if (!navigator.mediaDevices) return;
  find("camera").hidden = false;
  const stop = () => {
    for (const track of stream?.getTracks() || []) track.stop();
    stream = null;
    find("camera-box").hidden = true;
  };
  find("camera").addEventListener("click", async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      say(`The webcam cannot be used (${error.name}): allow it in the browser, or choose a file.`);
      return;
    }
    say("");
    view.srcObject = stream;
    find("camera-box").hidden = false;
    await view.play();
  });
  find("camera-stop").addEventListener("click", stop);
  find("camera-shoot").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = view.videoWidth;
    canvas.height = view.videoHeight;
    canvas.getContext("2d").drawImage(view, 0, 0);
    canvas.toBlob((blob) => put(new File([blob], "webcam.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
  });
});
