"""From a fitted detector to where it is used: bundles, a service, files of any length."""
