# Environment of an Ascend shell: source it, do not run it.
#   source environment/env.sh
# Safe to source twice, and where parts are missing: `telechat-kit check` says which.

# The driver's libraries: npu-smi and torch_npu load libascend_hal.so and libdrvdsmi_host.so from there.
# In a container they come from the host.
for _folder in /usr/local/Ascend/driver/lib64/common /usr/local/Ascend/driver/lib64/driver; do
    case ":${LD_LIBRARY_PATH:-}:" in
        *":${_folder}:"*) ;;
        *) export LD_LIBRARY_PATH="${_folder}${LD_LIBRARY_PATH:+:${LD_LIBRARY_PATH}}" ;;
    esac
done

# CANN: ASCEND_HOME_PATH, ASCEND_OPP_PATH and the search paths. First where it lies from 8.5 on, then before.
for _script in /usr/local/Ascend/cann/set_env.sh /usr/local/Ascend/ascend-toolkit/set_env.sh; do
    if [ -z "${ASCEND_HOME_PATH:-}" ] && [ -f "${_script}" ]; then
        # shellcheck disable=SC1090  # a file of CANN, not of this project
        . "${_script}"
    fi
done

# ATB: the kit does not call it, other serving software does. Its C++ ABI must be
# that of the installed torch; where the script picks the other one, source it by hand with --cxx_abi=0 or =1.
for _script in /usr/local/Ascend/nnal/atb/set_env.sh /usr/local/Ascend/atb/set_env.sh; do
    if [ -n "${ASCEND_HOME_PATH:-}" ] && [ -z "${ATB_HOME_PATH:-}" ] && [ -f "${_script}" ]; then
        # shellcheck disable=SC1090
        . "${_script}"
    fi
done
unset _folder _script

# The guide's variables, with the guide's values. One that is set already stays as it is.
# TASK_QUEUE_ENABLE: operators are handed to the device from a second thread. 0 off, 1 on (also the default of
# torch_npu), 2 more overlap for a higher peak of memory.
export TASK_QUEUE_ENABLE="${TASK_QUEUE_ENABLE:-1}"
# The next three speak to ATB alone: launch operations asynchronously, copy tiling data on a stream of its own,
# and reuse the memory of tensors inside a layer. Without ATB they do nothing.
export ATB_OPERATION_EXECUTE_ASYNC="${ATB_OPERATION_EXECUTE_ASYNC:-1}"
export ATB_USE_TILING_COPY_STREAM="${ATB_USE_TILING_COPY_STREAM:-1}"
export ATB_LAYER_INTERNAL_TENSOR_REUSE="${ATB_LAYER_INTERNAL_TENSOR_REUSE:-1}"

# For debugging, never while measuring:
#   ASCEND_LAUNCH_BLOCKING=1         every operator waits for the one before: errors name the right line
#   ASCEND_GLOBAL_LOG_LEVEL=1        0 debug, 1 info, 2 warning, 3 error; logs lie in ~/ascend/log
#   ASCEND_SLOG_PRINT_TO_STDOUT=1    ... or on the screen
#   ASCEND_RT_VISIBLE_DEVICES=0,1    the devices that this process sees, numbered from 0
