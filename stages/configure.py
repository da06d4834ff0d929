"""Stage `configure`: check the parameters, and write what each stage of the grid depends on."""

from pipeline.config.dvc_yaml import check_dvc_file
from pipeline.config.recipes import write_recipes
from pipeline.config.study import Study
from pipeline.config.workspace import check_results
from stages.common import main


def configure(study: Study) -> None:
    """Write the recipe of every stage of the grid; refuse a checkout in which DVC cannot work, models that are missing,
    and a dvc.yaml that would run something else."""
    check_results(study)
    study.params.check_files()
    check_dvc_file(study)
    write_recipes(study)


if __name__ == "__main__":
    main("configure")
