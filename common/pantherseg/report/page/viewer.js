"use strict";
// The only part of the page that knows NiiVue (0.69). For another viewer, or NiiVue 1.x, write this object again.
//
//   viewer.supported()                          whether this browser can show it (WebGL 2)
//   shown = await viewer.open(screen, volumes, moved)
//     screen: an element that gets a canvas, which is kept for the next case
//     volumes: {image, predicted, reference}, .nii.gz in base64; reference may be missing
//     moved: is called with (position, count, text) whenever something else is shown
//   shown.views                                 names of the views, to be shown by their number: shown.show(number)
//   shown.step(by), shown.goTo(position)        another slice; in 3-D, another angle
//   shown.toggle(mask, visible)                 mask: "predicted" or "reference"
//   shown.close()                               gives the memory of the volumes back
const viewer = (() => {
  // In the order in which they are drawn: the prediction last, so that nothing hides it.
  const COLOURS = { reference: [64, 180, 255], predicted: [255, 176, 0] };
  // Axial slices lie along the third axis of a volume, and so on.
  const VIEWS = [
    { name: "Axial", type: "AXIAL", axis: 2 },
    { name: "Coronal", type: "CORONAL", axis: 1 },
    { name: "Sagittal", type: "SAGITTAL", axis: 0 },
    { name: "All planes", type: "MULTIPLANAR", axis: 2 },
    { name: "3-D", type: "RENDER" },
  ];
  const DEGREES = 15;
  const ELEVATION = 20;
  // Slices must be seen through the masks, and in 3-D the masks through the volume.
  const OPACITY = { slices: { image: 1, mask: 0.2 }, solid: { image: 0.35, mask: 1 } };
  // NIfTI's code for label maps, of which alone NiiVue draws the outlines.
  const LABELS = 1002;

  // The library is compressed in the page, and unpacked and run when it is first needed.
  let loading = null;
  function load() {
    loading ??= (async () => {
      const packed = Uint8Array.from(atob(document.getElementById("niivue").textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script);
    })();
    return loading;
  }

  function supported() {
    const context = document.createElement("canvas").getContext("webgl2");
    context?.getExtension("WEBGL_lose_context")?.loseContext();
    return context !== null;
  }

  // One canvas for all cases: its shaders take seconds to compile, and browsers allow few canvases with WebGL.
  let niivueOfPage = null;
  async function prepare(screen) {
    await load();
    if (niivueOfPage) return niivueOfPage;
    const canvas = document.createElement("canvas");
    canvas.addEventListener("webglcontextlost", () => (niivueOfPage = null));
    screen.replaceChildren(canvas);
    const nv = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 1, 1, 0.5],
      crosshairWidth: 0.4,
      crosshairWidthUnit: "mm",
      crosshairGap: 12,
      dragAndDropEnabled: false,
      isColorbar: false,
      isRadiologicalConvention: true,
      loadingText: "",
      logLevel: "error",
      multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
      show3Dcrosshair: false,
      // The page has keys of its own.
      viewModeHotKey: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
    });
    await nv.attachToCanvas(canvas);
    niivueOfPage = nv;
    return nv;
  }

  // One after the other, because a case may be opened while the one before is still loading.
  let last = Promise.resolve();
  function open(...request) {
    const next = last.then(() => openNow(...request));
    last = next.catch(() => {});
    return next;
  }

  async function openNow(screen, volumes, moved) {
    const nv = await prepare(screen);
    [...nv.volumes].forEach((volume) => nv.removeVolume(volume));
    const image = { base64: volumes.image, name: "image.nii.gz", colormap: "gray", cal_min: 0, cal_max: 255 };
    nv.addVolume(await niivue.NVImage.loadFromBase64(image));
    const numbers = {};
    for (const [mask, colour] of Object.entries(COLOURS)) {
      if (!volumes[mask]) continue;
      const overlay = await niivue.NVImage.loadFromBase64({ base64: volumes[mask], name: `${mask}.nii.gz` });
      const [R, G, B] = colour.map((value) => [0, value]);
      overlay.setColormapLabel({ R, G, B, A: [0, 255], I: [0, 1], labels: ["", mask] });
      overlay.hdr.intent_code = LABELS;
      nv.addVolume(overlay);
      numbers[mask] = nv.volumes.length - 1;
    }
    const size = nv.volumes[0].dimsRAS.slice(1, 4);
    const middle = centre(nv.volumes[numbers.predicted]) ?? size.map((count) => count >> 1);
    nv.scene.crosshairPos = nv.vox2frac(middle);
    let view = VIEWS[0];
    const solid = () => view.type === "RENDER";
    const opacity = () => (solid() ? OPACITY.solid : OPACITY.slices);
    const hidden = new Set();
    const voxel = () => [...nv.frac2vox(nv.scene.crosshairPos)];

    function report() {
      if (solid()) {
        const position = Math.round(nv.scene.renderAzimuth / DEGREES) + 1;
        moved(position, 360 / DEGREES, `turned to ${Math.round(nv.scene.renderAzimuth)}°`);
      } else {
        const position = Math.round(voxel()[view.axis]) + 1;
        moved(position, size[view.axis], `slice ${position} of ${size[view.axis]}`);
      }
    }
    function goTo(position) {
      if (solid()) {
        nv.setRenderAzimuthElevation((360 + (position - 1) * DEGREES) % 360, ELEVATION);
      } else {
        const there = voxel();
        there[view.axis] = Math.min(Math.max(position, 1), size[view.axis]) - 1;
        nv.scene.crosshairPos = nv.vox2frac(there);
        nv.drawScene();
      }
      report();
    }
    function step(by) {
      goTo((solid() ? Math.round(nv.scene.renderAzimuth / DEGREES) : Math.round(voxel()[view.axis])) + 1 + by);
    }
    function show(number) {
      view = VIEWS[number];
      nv.opts.atlasOutline = solid() ? 0 : 1;
      nv.setOpacity(0, opacity().image);
      for (const [mask, index] of Object.entries(numbers)) nv.setOpacity(index, hidden.has(mask) ? 0 : opacity().mask);
      nv.setSliceType(niivue.SLICE_TYPE[view.type]);
      report();
    }
    function toggle(mask, visible) {
      if (visible) hidden.delete(mask);
      else hidden.add(mask);
      show(VIEWS.indexOf(view));
    }
    const own = [...nv.volumes];
    function close() {
      own.filter((volume) => nv.volumes.includes(volume)).forEach((volume) => nv.removeVolume(volume));
    }
    nv.onLocationChange = report;
    nv.onAzimuthElevationChange = report;
    show(0);
    return { views: VIEWS.map(({ name }) => name), show, step, goTo, toggle, close };
  }

  // The middle of a mask's voxels (x, y, z), so that the viewer opens at the tumour.
  function centre(mask) {
    const [, nx, ny] = mask.dimsRAS;
    const sums = [0, 0, 0];
    let voxels = 0;
    mask.img2RAS().forEach((value, index) => {
      if (!value) return;
      voxels += 1;
      sums[0] += index % nx;
      sums[1] += Math.floor(index / nx) % ny;
      sums[2] += Math.floor(index / (nx * ny));
    });
    return voxels ? sums.map((sum) => Math.round(sum / voxels)) : null;
  }

  return { supported, open };
})();
