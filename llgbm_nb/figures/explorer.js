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
    // The figure's own message of a lasso is lost where another follows at once.
    const lassoed = event => {
        const drawn = event?.lassoPoints, kept = Boolean(drawn?.x4);
        if (!drawn) return;
        model.set("lasso", {kept, x: drawn[kept ? "x4" : "x"], y: drawn[kept ? "y4" : "y"]});
        model.save_changes();
        const figure = find();  // Plotly keeps the outline, and would choose by it anew in every picture
        setTimeout(() => { figure.layout.selections = []; });
    };
    const forget = () => { model.set("lasso", {}); model.save_changes(); };
    const listen = () => find()?.on ? find().on("plotly_selected", lassoed).on("plotly_deselect", forget) : setTimeout(listen, 200);
    listen();
    new ResizeObserver(() => setTimeout(fit, 50)).observe(el);
    model.on("comm_live_update", () => {
        el.textContent = "The kernel of this picture is gone: nothing here answers. Run the cell again.";
    });
} }
