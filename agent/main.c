#include "agent/cmd.h"
#include "lib/crypto.h"

int main(int argc, char **argv)
{
	crypto_init();
	return cli_main(&agent_program, argc, argv);
}
