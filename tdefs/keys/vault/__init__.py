"""Vault and OpenBao, as far as the kinds of key sources that ask one share it: whom to ask, how, and as whom."""
