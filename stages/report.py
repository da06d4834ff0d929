"""Stage `report`: tables and figures over the whole grid."""

from stages.common import ParamsOption, clear_errors, single


@clear_errors
def report(params: ParamsOption = "params.yaml") -> None:
    """Compile all cells of the grid into tables, figures and a page; refuse results of another configuration."""
    from rich.console import Console

    from pipeline.config.params import load_params
    from pipeline.files import remove_leftovers
    from pipeline.report.summary import headline_table
    from pipeline.report.write import write_report
    from pipeline.running.results import Layout, read_result

    loaded = load_params(params)
    layout = Layout(loaded)
    stages = ("pretrain", "train", "understand", "generate")
    results = {
        cell: {stage: read_result(layout.folder(stage, cell), loaded, stage, cell) for stage in stages}
        for cell in loaded.cells()
    }
    read_result(layout.data, loaded, "prepare", None)  # of this configuration, as the report says what the data are
    judge = read_result(layout.judge, loaded, "judge", None)
    remove_leftovers(layout.reports)
    analysis = write_report(results, judge, layout, loaded)
    console = Console()
    if console.is_terminal:
        console.print(headline_table(analysis))


if __name__ == "__main__":
    single(report)
