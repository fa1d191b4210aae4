"""The capacity twin: how many instances a load needs, decided and replayed without a machine."""
