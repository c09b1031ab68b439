// Keys and uploads: what the page does itself. Everything else is decided by the server.
(() => {
  let hovered = "Red";

  document.addEventListener("mouseover", (event) => {
    const view = event.target.closest && event.target.closest("[data-view]");
    if (view && view.dataset.view !== "ThreeD") hovered = view.dataset.view;
  });

  // A list that was chosen from keeps the focus, as an input that takes no letters.
  const closedList = (element) =>
    element.inputMode === "none" && element.getAttribute("aria-expanded") !== "true";

  const typing = (element) =>
    element &&
    (element.isContentEditable || /^(text|search|number)$/.test(element.type || "")) &&
    !closedList(element);

  function actionOf(event) {
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") return event.shiftKey ? "redo" : "undo";
      return key === "y" ? "redo" : null;
    }
    if (event.altKey) return null;
    if (key === "d") return "draw";
    return key === "enter" || key === "escape" ? "finish" : null;
  }

  // Before the views see it: they send every key on to the slice under the mouse.
  document.addEventListener(
    "keydown",
    (event) => {
      const action = typing(event.target) ? null : actionOf(event);
      if (!action || event.repeat) return;
      // Only while something is drawn; else these keys are the focused control's.
      if (action === "finish" && !document.querySelector(".sp-hint")) return;
      event.preventDefault();
      event.stopPropagation();
      window.trame.trigger(action, action === "draw" ? [hovered] : []);
    },
    true,
  );

  window.shapePrior = {
    // The answer, with any error, comes with the state of the page.
    upload: (file) =>
      fetch(`upload?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file }),
  };
})();
