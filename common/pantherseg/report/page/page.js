"use strict";
// What the page does itself: draws pictures when they are scrolled to, steps slices, sorts the table, opens the viewer.

// --- Pictures. They wait in a template, whose images are not decoded, until they are near the screen or are printed.

function draw(figure) {
  const template = figure.querySelector("template");
  if (!template) return;
  template.replaceWith(template.content);
  const slider = figure.querySelector("input");
  const slices = [...figure.querySelectorAll(".strip li")];
  const current = figure.querySelector(".current");
  const show = (index) => {
    slider.value = index;
    slices.forEach((slice, number) => slice.classList.toggle("chosen", number === index));
    current.replaceChildren(...[...slices[index].children].map((child) => child.cloneNode(true)));
    slider.setAttribute("aria-valuetext", current.querySelector("svg").getAttribute("aria-label"));
  };
  slider.addEventListener("input", () => show(slider.valueAsNumber));
  slices.forEach((slice, index) => slice.addEventListener("click", () => show(index)));
  current.addEventListener("click", () => slider.focus());
  // The wheel scrolls the page, except over a picture whose slider has the focus.
  current.addEventListener("wheel", (event) => {
    if (document.activeElement !== slider) return;
    event.preventDefault();
    show(Math.min(Math.max(slider.valueAsNumber + Math.sign(event.deltaY), 0), slices.length - 1));
  });
  show(Number(figure.dataset.main));
}

const figures = document.querySelectorAll("figure.slices");
const nearby = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "600px" },
);
figures.forEach((figure) => nearby.observe(figure));
window.addEventListener("beforeprint", () => figures.forEach(draw));

// --- The table. Unknown values are last in either direction.

function sortBy(heading) {
  const headings = [...heading.parentElement.children];
  const descending = heading.getAttribute("aria-sort") === "ascending";
  headings.forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = heading.closest("table").tBodies[0];
  const column = headings.indexOf(heading);
  const value = (row) => row.cells[column].dataset.value;
  const numbers = column > 0;
  const rows = [...body.rows].sort((a, b) => {
    const [first, second] = [value(a), value(b)];
    if (first === undefined || second === undefined) return (first === undefined) - (second === undefined);
    const order = numbers ? first - second : first.localeCompare(second, "en", { numeric: true });
    return descending ? -order : order;
  });
  body.append(...rows);
}

document.querySelectorAll(".sortable th button").forEach((button) => {
  button.addEventListener("click", () => sortBy(button.closest("th")));
});

// --- The viewer, in a dialog.

const dialog = document.getElementById("viewer");
const [slider, position] = [dialog.querySelector(".position input"), dialog.querySelector("output")];
const [views, masks] = [dialog.querySelector(".views"), dialog.querySelector(".masks")];
const canvasPlace = dialog.querySelector(".screen");
let [shown, openings] = [null, 0];

function viewButton(name, number) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
  button.addEventListener("click", () => {
    [...views.children].forEach((other) => other.setAttribute("aria-pressed", other === button));
    shown.show(number);
  });
  button.setAttribute("aria-pressed", number === 0);
  return button;
}

function maskBox(mask) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
  box.addEventListener("change", () => shown.toggle(mask, box.checked));
  const key = Object.assign(document.createElement("span"), { className: `key ${mask}` });
  const label = document.createElement("label");
  label.append(box, key, ` ${mask}`);
  return label;
}

// The volumes stand behind this script.
const complete = new Promise((done) => document.addEventListener("DOMContentLoaded", done));

async function openViewer({ name, volumes: place }) {
  const text = (kind) => document.querySelector(`#${place} .${kind}`)?.textContent;
  const state = dialog.querySelector(".state");
  document.getElementById("viewer-title").textContent = name;
  state.textContent = "Opening the volume …";
  canvasPlace.setAttribute("aria-label", `Volume around the tumour of ${name}`);
  dialog.showModal();
  const opening = ++openings;
  try {
    await complete;
    const volumes = { image: text("image"), predicted: text("predicted"), reference: text("reference") };
    const opened = await viewer.open(canvasPlace, volumes, (place, count, words) => {
      slider.max = count;
      slider.value = place;
      slider.setAttribute("aria-valuetext", words);
      position.textContent = words;
    });
    if (opening !== openings) return opened.close(); // the dialog was closed while the case was loading
    shown = opened;
    views.replaceChildren(...shown.views.map(viewButton));
    masks.replaceChildren(...["predicted", "reference"].filter((mask) => volumes[mask]).map(maskBox));
    slider.focus();
    state.textContent = "";
  } catch (error) {
    state.textContent = `The volume cannot be shown in this browser: ${error.message}`;
  }
}

dialog.addEventListener("close", () => {
  shown?.close();
  shown = null;
  openings += 1;
  [views, masks].forEach((part) => part.replaceChildren());
  position.textContent = "";
});
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
slider.addEventListener("input", () => shown?.goTo(slider.valueAsNumber));
// Before NiiVue gets them, which has other keys.
dialog.addEventListener(
  "keydown",
  (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    const view = views.children[Number(event.key) - 1];
    if (!shown || event.ctrlKey || event.metaKey || event.altKey || !(step || view)) return;
    event.preventDefault();
    event.stopPropagation();
    if (step) shown.step(step);
    else view.click();
  },
  true,
);
document.querySelectorAll(".open-viewer").forEach((button) => {
  button.addEventListener("click", () => openViewer(button.dataset));
});

// After the first paint, because making a WebGL context takes a while.
requestAnimationFrame(() => setTimeout(() => {
  if (viewer.supported()) return;
  document.getElementById("no-webgl").hidden = false;
  document.querySelectorAll(".open-viewer").forEach((button) => (button.disabled = true));
}));
