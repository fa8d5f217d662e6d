/* assay-server: the command table is all there is. */
#include "lib/crypto.h"
#include "server/cmd.h"

int main(int argc, char **argv)
{
	crypto_init();
	return cli_main(&server_program, argc, argv);
}
