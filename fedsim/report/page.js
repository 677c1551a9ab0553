// Draws every picture, and keeps the reader's place while the page reads its file again.
"use strict";
(() => {
  const PAPER = 660; // pixels between the margins of a sheet of A4
  const memory = `place of ${location.pathname}`;
  const plots = () => [...document.querySelectorAll(".plot")];
  const folds = () => [...document.querySelectorAll("details")];
  const nameOf = (fold) => {
    const section = fold.closest("section");
    return `${section?.id} ${section ? [...section.querySelectorAll("details")].indexOf(fold) : 0}`;
  };

  function trouble(words) {
    const line = document.getElementById("trouble");
    line.textContent = `${words} The numbers behind each picture are in the table below its place.`;
    line.hidden = false;
  }

  async function unpack() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function draw() {
    if (!document.querySelector(".chart")) return;
    if (typeof DecompressionStream === "undefined") {
      trouble("This browser is too old to draw the pictures (it is from before 2023).");
      return;
    }
    await unpack();
    const touch = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, and does not zoom a picture
    for (const place of document.querySelectorAll(".chart")) {
      const figure = JSON.parse(place.querySelector("script").textContent);
      if (touch) figure.layout.dragmode = false;
      await Plotly.newPlot(place.querySelector(".plot"), figure.data, figure.layout, {
        displayModeBar: false, responsive: true, showTips: false,
      });
    }
  }

  function keepPlace() { // by the section that is read: what stands above it may have grown when the page is back
    const top = (section) => section.getBoundingClientRect().top;
    const read = [...document.querySelectorAll("main > section")].filter((section) => top(section) <= innerHeight / 3).pop();
    const place = {
      section: read?.id,
      above: read ? top(read) : -scrollY,
      open: folds().filter((fold) => fold.open).map(nameOf),
      following: document.getElementById("following")?.checked ?? true,
    };
    try { sessionStorage.setItem(memory, JSON.stringify(place)); } catch { /* a browser that keeps nothing */ }
  }

  function findPlace() {
    let place = null;
    try { place = JSON.parse(sessionStorage.getItem(memory)); } catch { /* likewise */ }
    if (!place) return;
    history.scrollRestoration = "manual";
    const following = document.getElementById("following");
    if (following) following.checked = place.following;
    for (const fold of folds()) fold.open = place.open.includes(nameOf(fold));
    const section = place.section && document.getElementById(place.section);
    scrollTo({ top: (section ? section.getBoundingClientRect().top + scrollY : 0) - place.above, behavior: "instant" });
  }

  function follow() {
    const seconds = Number(document.querySelector('meta[name="reload"]')?.content);
    if (!seconds) return;
    setInterval(() => {
      if (document.hidden || !document.getElementById("following").checked) return;
      keepPlace();
      location.reload();
    }, 1000 * seconds);
  }

  addEventListener("beforeprint", () => plots().forEach((plot) => Plotly.relayout(plot, { width: PAPER })));
  addEventListener("afterprint", () => plots().forEach((plot) => Plotly.relayout(plot, { width: null, autosize: true })));
  addEventListener("pagehide", keepPlace);
  findPlace();
  draw().then(
    () => { document.documentElement.dataset.drawn = "true"; follow(); },
    (error) => { trouble("The pictures could not be drawn."); console.error(error); follow(); },
  );
})();
