.PHONY: demo test check bench torture faults mutants install

demo:    ; @tests/demo.sh
test:    ; @tests/scripts/test.sh
check:   ; @tests/scripts/check.sh
bench:   ; @tests/scripts/bench.sh
torture: ; @tests/scripts/torture.sh torture $(ARGS)
faults:  ; @tests/scripts/torture.sh faults $(ARGS)
mutants: ; @tests/scripts/mutants.sh $(ARGS)
install: ; @tests/scripts/install.sh
