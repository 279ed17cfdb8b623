"""What training/compare.py makes of its runs: evaluations beside them, means and spreads over seeds, tables, pictures.

evaluations = read_evaluations([{"tasks": ["knn"], "dataset": "scenes", "protocols": {"knn": {"ks": [20]}}}])
results = evaluate_model("runs/compare/levljepa-0", evaluations, "runs/compare/levljepa-0/evaluation.json")
rows = comparison_rows(evaluations, {"levljepa": [results]})
print(format_rows(rows, reference="levljepa"))

Imports point from `report` to `runs`, from there to `sweeps`, `tables` and `evaluations`;
`correlations` reads logs alone.
"""

from levljepa_hf.extras import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "correlations": (
            "ALONG EARLY HEALTH_FIGURES MIN_RUNS RESULTS Trajectory format_health "
            "plot_health probed rank_correlations trajectories "
        ),
        "evaluations": "EVALUATION_FILE Evaluation evaluate_model read_evaluations read_results",
        "report": "ROWS Report rounded",
        "runs": "OPTIONS_FILE Comparison Run Tuning check_folder score",
        "sweeps": "Sweep format_sweep plot_sweep read_sweeps",
        "tables": "CONFIDENCE Row comparison_rows differs format_rows plot_rows row_titles",
    },
)
