"""The shell around the decisions: control thread, streams, timers, TLS, files, names, fork."""
