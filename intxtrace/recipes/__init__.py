"""Recipes: the commands by which a host without bcc makes a recording that `intxtrace import` reads in full.

What is probed comes from the probe catalogue, what events and arguments are called from the importer's dialect, where
QEMU's functions are from the function finder. A recipe is a shell script; making one changes nothing.
"""
