// Nothing to see: the figure fills the width there is, in a notebook's window and when that changes.
export default { render({ el }) {
    new ResizeObserver(() => window.dispatchEvent(new Event("resize"))).observe(el);
    setTimeout(() => window.dispatchEvent(new Event("resize")), 50);
} }
