"""Hold the YAML files of npas; installed as the package `npas.configs`."""
