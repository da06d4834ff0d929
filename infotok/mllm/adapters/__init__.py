"""One module a model, named as `config.model_type` names it, with a class `Adapted`, a subclass of
`infotok.mllm.adapter.Adapter`. Found by name: another one is one file here and none elsewhere."""
