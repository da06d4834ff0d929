"""Code that the folders of tiny models bring along (`infotok.mllm.tiny`), as folders of the hub do."""
