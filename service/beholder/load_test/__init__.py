"""`beholder load-test URL`: throughput and latency of a running service under a mix of requests like a rollout's."""
