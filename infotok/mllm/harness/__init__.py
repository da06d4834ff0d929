"""Models here as the field's evaluation tools take them: lmms-eval and VLMEvalKit. No benchmark is written again."""
