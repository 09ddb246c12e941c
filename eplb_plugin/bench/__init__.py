"""`eplb-plugin bench`: real servers without EPLB, with the engine's own and with the plugin, under the same load."""
