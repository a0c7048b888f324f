"""What the files in the folder of a run are called."""

RECIPE, REPORT, DELTA, RESULT = "recipe.toml", "run.json", "delta.safetensors", "result.json"
