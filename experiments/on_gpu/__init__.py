"""What ``experiments.gpu`` is made of: the watch over its time, and its checks. Never imported by the library."""
