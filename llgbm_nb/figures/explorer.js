// Nothing to see: the figure fills the width there is, in a notebook's window and when that changes, and where that is
// narrow it is higher, and the explorer is told. Where the kernel goes, a line says so.
export default { render({ model, el }) {
    const find = () => el.closest(".llgbm-explorer")?.querySelector(".js-plotly-plot");
    const fit = () => {
        const figure = find(), narrow = figure?.clientWidth < 740;
        figure?.classList.toggle("llgbm-narrow", narrow);
        window.dispatchEvent(new Event("resize"));
        if (!figure?.clientWidth || model.get("narrow") === narrow) return;
        model.set("narrow", narrow);
        model.save_changes();
    };
    // Plotly keeps a lasso's outline, and would choose by it anew in every picture.
    const forget = figure => setTimeout(() => { figure.layout.selections = []; });
    const listen = () => find()?.on ? find().on("plotly_selected", () => forget(find())) : setTimeout(listen, 200);
    listen();
    new ResizeObserver(() => setTimeout(fit, 50)).observe(el);
    model.on("comm_live_update", () => {
        el.textContent = "The kernel of this picture is gone: nothing here answers. Run the cell again.";
    });
} }
