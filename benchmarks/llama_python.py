"""What programs have in common that run llama.cpp in the Python of another environment."""

# what follows the imports of such a program; its first two arguments are the file and whether weights are repacked
AS_IN_FILE = """
import llama_cpp, sys
place, repack = sys.argv[1:3]
defaults = llama_cpp.llama_model_default_params
def without():
    found = defaults()
    found.use_extra_bufts = False
    return found
if repack != "True":
    llama_cpp.llama_model_default_params = llama_cpp.llama_cpp.llama_model_default_params = without
"""
