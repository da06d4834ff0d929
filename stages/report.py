"""Stage `report`: tables and figures over the whole grid."""

from rich.console import Console

from infotok.files import remove_leftovers
from pipeline.config.study import Study
from pipeline.report.summary import headline_table
from pipeline.report.write import write_report
from pipeline.results import read_result
from stages.common import main


def report(study: Study) -> None:
    """Compile all cells of the grid into tables, figures and a page; refuse results of another configuration."""
    stages = study.graph.with_axes
    results = {cell: {stage: read_result(study, stage, cell) for stage in stages} for cell in study.params.cells()}
    read_result(study, "prepare", None)  # of this configuration, as the report says what the data are
    judge = read_result(study, "judge", None)
    remove_leftovers(study.reports)
    analysis = write_report(results, judge, study)
    console = Console()
    if console.is_terminal:
        console.print(headline_table(analysis))


if __name__ == "__main__":
    main("report")
