"""One module per subject; every `bench_<operation>__<shape>` in it is a case."""
